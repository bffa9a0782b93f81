"""What the samples say about each method: medians with their intervals, its cost, and what is missing or wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.logs.frames import Results
from analysis.measures.ceilings import ways
from analysis.measures.statistics import Interval, Timed, median_interval
from analysis.measures.stragglers import Spread, spreads


@dataclass(frozen=True, slots=True)
class Statistic:
    """A median with its spread; `median` is NaN where no sample is valid."""

    median: float
    smallest: float
    largest: float
    count: int
    """Valid samples."""
    invalid: int
    """Samples that were measured, and may not be used."""
    low: float
    """The ends of the median's 95 % bootstrap interval; NaN with fewer than two samples."""
    high: float
    timed: Timed = field(default=Timed(), compare=False, repr=False)
    """The valid samples."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method's operations cost, and how near they came to what the target can do; NaN where unknown.

    All is of all ranks together, but memory, which is the largest rank's. Rates are total bytes over total time, of
    valid samples. Shares are of the ceiling that the same jobs measured.
    """

    write_ceiling_gbps: float
    """What the target did by itself in the same jobs, for all ranks at the same time."""
    read_ceiling_gbps: float
    write_ceiling_way: str
    """How it was reached (`ceilings.best`)."""
    read_ceiling_way: str
    save_gbps: float
    save_share: float
    load_gbps: float
    """Of cold loads; of unproven ones where none is proven, of warm ones where there are no others."""
    load_share: float
    save_cpu_s: float
    load_cpu_s: float
    save_cores: float
    """CPU time over duration, total over total."""
    load_cores: float
    save_extra_bytes: float
    """Memory above what was resident before, at its peak, of the rank that took most."""
    load_extra_bytes: float
    """The same for loads: the loaded state is part of it."""
    written_share: float
    """Bytes sent to storage during a save, over the state's: write amplification."""
    read_share: float
    """Bytes fetched from storage during a load, over the state's."""
    disk_share: float
    """What the filesystem took for the checkpoint, over the state's bytes."""
    file_count: float
    small_file_share: float
    directory_count: float
    files_per_rank: float
    creates_per_s: float
    """Files and directories made in a second of a save: total over total, of valid saves."""


@dataclass(frozen=True, slots=True)
class Method:
    """One strategy, with its options, on one target at one scale."""

    label: str
    best_for: str
    save: Statistic
    """Seconds until the checkpoint was committed."""
    load_cold: Statistic
    """Seconds until every byte was in memory; no page cached before."""
    load_unproven: Statistic
    """The same, where it can't be proven that nothing was cached."""
    load_warm: Statistic
    size_bytes: float
    """Median of the files' sizes; NaN if nothing was written."""
    saved_bytes: float
    """What a save moves, by all ranks together; NaN where no save is valid."""
    loaded_bytes: float
    """What a load moves: more than the state where every rank loads all of it."""
    phases: Mapping[str, float]
    """Medians in s of the parts of a save, in their order; each from its first start on a rank to its last end."""
    cost: Cost
    spreads: tuple[Spread, ...]
    """How its ranks differ; empty where there is one."""
    problems: tuple[str, ...]
    """What a reader has to know: jobs that failed or never reported, invalid samples."""

    def moved_bytes(self, operation: str) -> float:
        """What one of `relative.OPERATIONS` moves, by all ranks together."""
        return self.saved_bytes if operation == "save" else self.loaded_bytes

    def gbps(self, operation: str, took: Statistic) -> Interval:
        """The rate at the median time, and at the ends of its interval: GB/s, with GB = 1e9 bytes."""
        ends = (took.median, took.high, took.low)
        return Interval(*(self.moved_bytes(operation) / end / 1e9 if end > 0 else math.nan for end in ends))


def method_of(label: str, jobs: pd.DataFrame, results: Results, work: pd.DataFrame) -> Method:
    """One method, from its jobs, from results that hold their samples, and from the own work of their ranks."""
    ids = set(jobs["job_id"])
    samples = results.samples[results.samples["job_id"].isin(ids)]
    totals = samples[samples["phase"] == "total"]
    measured = totals[~totals["warmup"]]
    loads = measured[measured["operation"] == "load"]
    disk = results.disk[results.disk["job_id"].isin(ids)]
    disk = disk.merge(measured[["job_id", "trial"]].drop_duplicates(), on=["job_id", "trial"])
    valid = measured[measured["valid"]]
    facts = [json.loads(text) for text in jobs["strategy_facts"].dropna() if text]
    return Method(
        label=label,
        best_for=facts[0].get("best_for", "") if facts else "",
        save=_statistic(measured[measured["operation"] == "save"]),
        load_cold=_statistic(loads[loads["cache"] == "cold"]),
        load_unproven=_statistic(loads[loads["cache"] == "cold-unproven"]),
        load_warm=_statistic(loads[loads["cache"] == "warm"]),
        size_bytes=float(disk["apparent_bytes"].median()) if len(disk) else math.nan,
        saved_bytes=float(valid[valid["operation"] == "save"]["state_bytes"].median()),
        loaded_bytes=float(valid[valid["operation"] == "load"]["state_bytes"].median()),
        phases=_phases(samples),
        cost=_cost(valid, disk, results.ceiling[results.ceiling["job_id"].isin(ids)]),
        spreads=spreads(work[work["job_id"].isin(ids)]),
        problems=(*_job_problems(jobs), *_sample_problems(totals)),
    )


def _phases(samples: pd.DataFrame) -> dict[str, float]:
    parts = samples[
        (samples["operation"] == "save") & (samples["phase"] != "total") & samples["valid"] & ~samples["warmup"]
    ]
    return {
        str(phase): float(value) for phase, value in parts.groupby("phase", sort=False)["duration_s"].median().items()
    }


def _cost(valid: pd.DataFrame, disk: pd.DataFrame, ceiling: pd.DataFrame) -> Cost:
    saves = valid[valid["operation"] == "save"]
    loads = valid[valid["operation"] == "load"]
    kinds = [kind for kind in ("cold", "cold-unproven", "warm") if (loads["cache"] == kind).any()]
    chosen = loads[loads["cache"] == kinds[0]] if kinds else loads

    def rate(samples: pd.DataFrame, size: str) -> float:
        seconds = float(samples["duration_s"].sum())
        return float(samples[size].sum()) / seconds / 1e9 if seconds else math.nan

    def median(samples: pd.DataFrame, column: str) -> float:
        return float(samples[column].median()) if len(samples) else math.nan

    save_gbps, load_gbps = rate(saves, "state_bytes"), rate(chosen, "state_bytes")
    writes, reads = (ceiling[ceiling["operation"] == name] for name in ("write", "read"))
    write_gbps, read_gbps = rate(writes, "size_bytes"), rate(reads, "size_bytes")
    state_bytes = float(saves["state_bytes"].median()) if len(saves) else math.nan
    return Cost(
        write_ceiling_gbps=write_gbps,
        read_ceiling_gbps=read_gbps,
        write_ceiling_way=ways(writes),
        read_ceiling_way=ways(reads),
        save_gbps=save_gbps,
        save_share=save_gbps / write_gbps,
        load_gbps=load_gbps,
        load_share=load_gbps / read_gbps,
        save_cpu_s=median(saves, "cpu_s"),
        load_cpu_s=median(chosen, "cpu_s"),
        save_cores=_cores(saves),
        load_cores=_cores(chosen),
        save_extra_bytes=median(saves, "peak_extra_bytes"),
        load_extra_bytes=median(chosen, "peak_extra_bytes"),
        written_share=median(saves, "device_write_bytes") / state_bytes if state_bytes else math.nan,
        read_share=median(chosen, "device_read_bytes") / state_bytes if state_bytes else math.nan,
        disk_share=median(disk, "allocated_bytes") / state_bytes if state_bytes else math.nan,
        file_count=median(disk, "file_count"),
        small_file_share=float((disk["small_file_count"] / disk["file_count"]).median()) if len(disk) else math.nan,
        directory_count=median(disk, "directory_count"),
        files_per_rank=float((disk["file_count"] / (disk["nodes"] * disk["tasks_per_node"])).median()),
        creates_per_s=_creates_per_s(saves, disk),
    )


def _creates_per_s(saves: pd.DataFrame, disk: pd.DataFrame) -> float:
    made = saves[["job_id", "trial", "duration_s"]].merge(disk, on=["job_id", "trial"])
    made = made[made["directory_count"].notna()]
    seconds = float(made["duration_s"].sum())
    return float((made["file_count"] + made["directory_count"]).sum()) / seconds if seconds else math.nan


def _cores(samples: pd.DataFrame) -> float:
    known = samples.dropna(subset=["cpu_s"])
    seconds = float(known["duration_s"].sum())
    return float(known["cpu_s"].sum()) / seconds if seconds else math.nan


def _statistic(samples: pd.DataFrame) -> Statistic:
    valid = samples[samples["valid"]].dropna(subset=["duration_s"])
    timed = Timed(
        *(tuple(column.tolist()) for column in (valid["duration_s"], valid["job_id"], valid["round"].map(str)))
    )
    median = median_interval(timed.durations, timed.jobs)
    return Statistic(
        median.estimate, min(timed.durations, default=math.nan), max(timed.durations, default=math.nan),
        len(valid), len(samples) - len(valid), median.low, median.high, timed,
    )  # fmt: skip


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
    unproven = totals[totals["valid"] & ~totals["warmup"] & (totals["cache"] == "cold-unproven")]
    if len(unproven):
        fraction = unproven["resident_fraction"].max()
        share = "an unknown share" if math.isnan(fraction) else f"up to {fraction:.0%}"
        problems.append(
            f"{len(unproven)} load(s) not proven cold, in a column of their own: {share} of the pages was cached"
        )
    return problems
