"""Describes one method of a setting: its trials, what they cost, the files they wrote, and what is missing or wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.measures.ceilings import Ceiling, ceilings
from analysis.measures.lost import LoopCost
from analysis.measures.operation import LOADS, LOADS_IN_PLACE, Direction, Operation, kinds_of
from analysis.measures.stragglers import Imbalance, imbalances
from analysis.measures.trials import NO_TRIALS, Trials

UNKNOWN_FACT = "unknown"
"""A fact about a strategy that the logs don't hold, because they were written before it existed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the trials of one operation needed, of all ranks together; NaN where unknown."""

    gbps: float = math.nan
    """Total bytes over total time, in GB/s with GB = 1e9 bytes."""
    of_ceiling: float = math.nan
    """`gbps` as a fraction of the ceiling that the same jobs measured."""
    cpu_s: float = math.nan
    cores: float = math.nan
    """CPU time over duration, total over total."""
    extra_bytes: float = math.nan
    """Memory above what was resident before, at its peak, of the rank that took most. A load's holds the state."""
    device_fraction: float = math.nan
    """Bytes sent to storage, or fetched from it, over those of the state: for a save the write amplification."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a method's checkpoints take on the filesystem: medians over the trials; NaN where unknown."""

    size_bytes: float = math.nan
    mean_file_bytes: float = math.nan
    """Total size over the total number of files."""
    allocated_fraction: float = math.nan
    """Bytes that the filesystem allocated over the state's."""
    count: float = math.nan
    small_fraction: float = math.nan
    """The fraction of the files that are smaller than 1 MiB."""
    directory_count: float = math.nan
    per_rank: float = math.nan
    created_per_s: float = math.nan
    """Files and directories over the time of the save: total over total, of valid saves."""


@dataclass(frozen=True, slots=True)
class Method:
    """A strategy with its options on one target at one scale."""

    label: str
    strategy: str = UNKNOWN_FACT
    facts: Mapping[str, str] = field(default_factory=dict)
    """The strategy's description of itself when the log was written."""
    operations: Mapping[Operation, Trials] = field(default_factory=dict)
    """The trials of the measured operations. A save lasts until the checkpoint is committed."""
    phases: Mapping[str, Trials] = field(default_factory=dict)
    """The parts of a save, in their order; a part lasts from its first start on a rank to its last end."""
    usage: Mapping[Operation, Usage] = field(default_factory=dict)
    """What the operations with a valid trial needed."""
    files: Files = Files()
    ceilings: Mapping[Direction, Ceiling] = field(default_factory=dict)
    """The rates that the target reached by itself in this method's jobs."""
    imbalances: tuple[Imbalance, ...] = ()
    """How its ranks differ; empty where there is one rank."""
    problems: tuple[str, ...] = ()
    """What a reader must know: jobs that failed or never reported, invalid samples."""
    loop: LoopCost | None = None
    """What its saves cost a training loop; None where no job of it has one, or left a log."""

    def __getitem__(self, operation: Operation) -> Trials:
        """The trials of one operation; none where it was not measured."""
        return self.operations.get(operation, NO_TRIALS)

    def fact(self, name: str) -> str:
        """Return one of the facts about the strategy; `UNKNOWN_FACT` where the log was written before it existed."""
        return self.facts.get(name, UNKNOWN_FACT)

    def cold_load(self) -> Operation | None:
        """Return the load that is nearest to a restart from storage: cold from the device, ..., else warm."""
        return next((load for load in LOADS if len(self[load])), None)

    def load_in_place(self) -> Operation | None:
        """Return the load into memory that existed, if there was one."""
        return next((load for load in LOADS_IN_PLACE if len(self[load])), None)

    def load_trials(self) -> Trials:
        """Return the trials of `cold_load()`."""
        load = self.cold_load()
        return self[load] if load else NO_TRIALS

    def usage_of(self, operation: Operation | None) -> Usage:
        """Return what an operation needed; NaN where it has no valid trial."""
        return self.usage.get(operation, Usage()) if operation else Usage()

    @property
    def state_bytes(self) -> int:
        """The size of the state: what a save moves, or a load where no save is valid; 0 where neither is."""
        sizes = (trials.moved_bytes for trials in (self[Operation.SAVE], self.load_trials()) if len(trials))
        return int(next(sizes, 0))


@dataclass(frozen=True, slots=True)
class Measurements:
    """Frames of a set of jobs, with all ranks of an operation folded into one row."""

    samples: pd.DataFrame
    disk: pd.DataFrame
    ceiling: pd.DataFrame
    """Rows that `ceilings.best` chose."""
    work: pd.DataFrame
    """The work of single ranks (`stragglers.own_work`)."""

    def of(self, jobs: pd.DataFrame) -> Measurements:
        """Return the rows of some of the jobs, which are all of one study."""
        ids = set(jobs["job_id"])
        frames = (self.samples, self.disk, self.ceiling, self.work)
        return Measurements(*(frame[frame["job_id"].isin(ids)] for frame in frames))


def method_of(jobs: pd.DataFrame, measurements: Measurements) -> Method:
    """Build one method from its jobs and their measurements."""
    samples, disk = measurements.samples, measurements.disk
    samples = samples.assign(started_s=_zeros_s(samples, jobs) + samples["start_s"])
    measured = samples[~samples["warmup"]]
    totals = measured[measured["phase"] == "total"]
    disk = disk.merge(totals[["job_id", "trial"]].drop_duplicates(), on=["job_id", "trial"])
    kinds = kinds_of(totals["operation"], totals["cache"])
    rows = {operation: totals[kinds == operation.value] for operation in Operation}
    saves = rows[Operation.SAVE][rows[Operation.SAVE]["valid"]]
    state_bytes = float(saves["state_bytes"].median())
    of_target = ceilings(measurements.ceiling)
    facts = [json.loads(text) for text in jobs["strategy_facts"].dropna() if text]
    return Method(
        label=str(jobs["label"].iloc[0]),
        strategy=str(next(iter(jobs["strategy"].dropna()), UNKNOWN_FACT)),
        facts=facts[0] if facts else {},
        operations={operation: _trials(chosen) for operation, chosen in rows.items() if len(chosen)},
        phases=_phases(measured),
        usage={
            operation: _usage(operation, chosen[chosen["valid"]], state_bytes, of_target)
            for operation, chosen in rows.items()
            if chosen["valid"].any()
        },
        files=_files(saves, disk, state_bytes),
        ceilings=of_target,
        imbalances=imbalances(measurements.work),
        problems=(*_job_problems(jobs), *_sample_problems(samples[samples["phase"] == "total"])),
    )


def _zeros_s(samples: pd.DataFrame, jobs: pd.DataFrame) -> pd.Series:
    """Return, per sample, the zero of its job's clock in seconds since 1970."""
    return samples["job_id"].map(jobs.set_index("job_id")["clock_zero_unix_s"]).astype("float64")


def _trials(samples: pd.DataFrame) -> Trials:
    valid = samples[samples["valid"]].sort_values("started_s", kind="stable")
    return Trials(
        durations_s=tuple(valid["duration_s"].tolist()),
        jobs=tuple(valid["job_id"].tolist()),
        rounds=tuple(map(str, valid["round"])),
        started_s=tuple(valid["started_s"].tolist()),
        moved_bytes=float(valid["state_bytes"].median()),
        invalid=len(samples) - len(valid),
    )


def _phases(measured: pd.DataFrame) -> dict[str, Trials]:
    parts = measured[(measured["operation"] == "save") & (measured["phase"] != "total") & measured["valid"]]
    return {str(phase): _trials(parts[parts["phase"] == phase]) for phase in parts["phase"].unique()}


def _usage(
    operation: Operation, valid: pd.DataFrame, state_bytes: float, of_target: Mapping[Direction, Ceiling]
) -> Usage:
    seconds = float(valid["duration_s"].sum())
    gbps = float(valid["state_bytes"].sum()) / seconds / 1e9 if seconds else math.nan
    timed = valid.dropna(subset=["cpu_s"])
    timed_s = float(timed["duration_s"].sum())
    device = "device_write_bytes" if operation is Operation.SAVE else "device_read_bytes"
    return Usage(
        gbps=gbps,
        of_ceiling=gbps / of_target[operation.direction].gbps,
        cpu_s=float(valid["cpu_s"].median()),
        cores=float(timed["cpu_s"].sum()) / timed_s if timed_s else math.nan,
        extra_bytes=float(valid["peak_extra_bytes"].median()),
        device_fraction=float(valid[device].median()) / state_bytes if state_bytes else math.nan,
    )


def _files(saves: pd.DataFrame, disk: pd.DataFrame, state_bytes: float) -> Files:
    if not len(disk):
        return Files()
    ranks = disk["nodes"] * disk["tasks_per_node"]
    count = float(disk["file_count"].sum())
    return Files(
        size_bytes=float(disk["apparent_bytes"].median()),
        mean_file_bytes=float(disk["apparent_bytes"].sum()) / count if count else math.nan,
        allocated_fraction=float(disk["allocated_bytes"].median()) / state_bytes if state_bytes else math.nan,
        count=float(disk["file_count"].median()),
        small_fraction=float((disk["small_file_count"] / disk["file_count"]).median()),
        directory_count=float(disk["directory_count"].median()),
        per_rank=float((disk["file_count"] / ranks).median()),
        created_per_s=_created_per_s(saves, disk),
    )


def _created_per_s(saves: pd.DataFrame, disk: pd.DataFrame) -> float:
    counted = saves[["job_id", "trial", "duration_s"]].merge(disk, on=["job_id", "trial"])
    counted = counted.dropna(subset=["directory_count"])
    seconds = float(counted["duration_s"].sum())
    created = float((counted["file_count"] + counted["directory_count"]).sum())
    return created / seconds if seconds else math.nan


def _job_problems(jobs: pd.DataFrame) -> list[str]:
    return [
        f"{job['job_id']}: {job['status']}" + (f": {job['error']}" if job["error"] else "")
        for job in jobs[jobs["status"] != "complete"].to_dict("records")
    ]


def _sample_problems(totals: pd.DataFrame) -> list[str]:
    problems = []
    for key, group in totals[~totals["valid"]].groupby(["job_id", "warmup", "operation", "reason"], sort=True):
        job_id, warmup, operation, reason = key
        problems.append(f"{job_id}: {len(group)} invalid {'warm-up ' if warmup else ''}{operation} sample(s): {reason}")
    unproven = totals[totals["valid"] & ~totals["warmup"] & (totals["cache"] == Operation.LOAD_UNPROVEN.value)]
    if len(unproven):
        fraction = unproven["resident_fraction"].max()
        share = "an unknown share" if math.isnan(fraction) else f"up to {fraction:.0%}"
        problems.append(
            f"{len(unproven)} load(s) not proven cold, in a column of their own: {share} of the pages was cached"
        )
    return problems
