"""Timing logs with hand-chosen samples, so that every number of a table can be computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from jobs import timing_log
from jobs.plan.plan import Job
from jobs.timing_log import Ceiling, DiskUse, Header, Hook, Metadata, Rank, Sample, TimingLog

GIB = 2**30
GB = 10**9

COMMIT_S = 0.25
"""How long after the last of several ranks has synced all of them have committed."""

STATE: dict[str, Any] = {
    "model": "tiny",
    "tensors": 3,
    "parameters": 500_000_000,
    "state_bytes": GIB,
    "dtypes": "float16",
    "values": "normal-bfloat16",
    "seed": 0,
    "digest": "0123456789abcdef" * 4,
}

SAMPLE = Sample(
    trial=0,
    warmup=False,
    rank=0,
    operation="save",
    phase="total",
    start_s=0.0,
    duration_s=1.0,
    state_bytes=GIB,
    durability="n/a",
    cache="n/a",
    resident_fraction=math.nan,
    cpu_s=math.nan,
    peak_rss_bytes=-1,
    valid=True,
    reason="",
)

Seconds = float | Sequence[float]
"""What an operation took: of one process, all of it; of several ranks, each rank's own work."""


def job(label: str, target: str = "disk", number: int = 1, *, nodes: int = 1, tasks: int = 1) -> Job:
    """A job of this label, target and round at this scale, without a plan."""
    strategy, *options = label.split("+")
    return Job(
        id=f"r{number:02}-{label}-{target}-{nodes}x{tasks}",
        order=0,
        round=number,
        strategy=strategy,
        options=dict(option.split("=") for option in options),
        label=label,
        target=target,
        nodes=nodes,
        tasks_per_node=tasks,
        load_ranks=nodes * tasks,
        trials=0,
        state_bytes=GIB,
        rank_bytes=GIB // (nodes * tasks),
        checkpoint_files=0,
        checkpoint_bytes=0,
        directory_files=0,
        directory_bytes=0,
    )


def header_of(planned: Job, **changes: Any) -> Header:
    """The header of a complete job's log, with other values for some attributes."""
    attributes: dict[str, Any] = {
        "study": "tiny",
        "job_id": planned.id,
        "strategy": planned.strategy,
        "label": planned.label,
        "strategy_options": json.dumps(planned.options, sort_keys=True),
        "strategy_facts": "{}",
        "target": planned.target,
        "round": planned.round,
        "nodes": planned.nodes,
        "tasks_per_node": planned.tasks_per_node,
        "trials_planned": 2,
        "created_utc": "2026-01-02T03:04:05+00:00",
        "clock_zero_unix_s": 1.75e9,
        "status": "complete",
        "error": "",
    }
    return Header(**attributes | changes)


class LogBuilder:
    """The log of a job, one trial after the other; `write` or `log` is what has come together."""

    def __init__(self, planned: Job, **header: Any) -> None:
        self.log = TimingLog(header=header_of(planned, **header), state=dict(STATE), provenance={"host": "node1"})
        self.log.storage = {"path": "/scratch", "filesystem": "ext4"}
        self._job = planned
        self._trials = 0

    @property
    def ranks(self) -> int:
        """How many ranks the job has."""
        return self._job.nodes * self._job.tasks_per_node

    def trial(
        self,
        *,
        save: Seconds | None = None,
        cold: Seconds | None = None,
        warm: Seconds | None = None,
        warmup: bool = False,
        unproven: float | None = None,
        reasons: Mapping[str, str] | None = None,
        lost: Collection[tuple[str, int]] = (),
    ) -> Self:
        """Add a trial.

        Args:
            save: seconds of the save. One process calls for half of them, and syncs and commits for a quarter each;
                each of several ranks calls and syncs for half of its own, and all commit until `COMMIT_S` after the
                last has synced.
            cold: seconds of the first load.
            warm: seconds of the second load.
            warmup: whether the trial only warms up.
            unproven: share of the pages that were cached before a load that was to be cold.
            reasons: `save`, `cold` or `warm` -> why the samples of all ranks may not be used.
            lost: (operation, rank) of which there is no sample.
        """
        self._warmup, self._reasons, self._lost = warmup, reasons or {}, lost
        begin_s = 1000.0 * self._trials
        if isinstance(save, Sequence):
            end_s = max(save) + COMMIT_S
            for rank, seconds in enumerate(save):
                self._sample("save", "call", seconds / 2, rank, begin_s)
                self._sample("save", "sync", seconds / 2, rank, begin_s + seconds / 2)
                self._sample("save", "commit", end_s - seconds, rank, begin_s + seconds)
                self._sample("save", "total", end_s, rank, begin_s)
        elif save is not None:
            for phase, share in (("call", 0.5), ("sync", 0.25), ("commit", 0.25), ("total", 1.0)):
                self._sample("save", phase, save * share)
        cold_kind = "cold" if unproven is None else "cold-unproven"
        for kind, cache, seconds_of, resident in (
            ("cold", cold_kind, cold, unproven or 0.0),
            ("warm", "warm", warm, 1.0),
        ):
            if isinstance(seconds_of, Sequence):
                for rank, seconds in enumerate(seconds_of):
                    self._sample(kind, "total", seconds, rank, begin_s + 500, cache=cache, resident=resident)
            elif seconds_of is not None:
                self._sample(kind, "total", seconds_of, cache=cache, resident=resident)
        self._trials += 1
        return self

    def disk(self, trial: int, size_bytes: int, *, files: int = 1, directories: int = -1) -> Self:
        """Add what a trial's checkpoint takes; `directories` is -1 where the job didn't count them."""
        use = DiskUse(
            trial=trial,
            file_count=files,
            apparent_bytes=size_bytes,
            allocated_bytes=size_bytes,
            small_file_count=0,
            largest_file_bytes=size_bytes,
            directory_count=directories,
        )
        self.log.disk.append(use)
        return self

    def ceilings(self, seconds: Sequence[float]) -> Self:
        """Add what each rank took to write, and to read, its share of the state; rank r starts r / 4 s late."""
        self.log.ceiling += [
            Ceiling(
                when=when,
                operation=operation,
                size_bytes=GIB // self.ranks,
                start_s=start_s + rank / 4,
                duration_s=duration_s,
                direct=True,
                rank=rank,
            )
            for when, start_s in (("before", 0.0), ("after", 1e5))
            for operation in ("write", "read")
            for rank, duration_s in enumerate(seconds)
        ]
        return self

    def metadata(self, rates: Mapping[str, float], *, ranks: int = 1, count: int = 100) -> Self:
        """Add what ranks did with small files at the same time: operation -> how many per second each rank did."""
        self.log.metadata += [
            Metadata(
                when="before",
                operation=operation,
                count=count,
                size_bytes=0 if operation.endswith("dir") else 3901,
                start_s=10.0 * number,
                duration_s=count / rate,
                rank=rank,
                made_by=(rank + 1) % ranks,
                ranks=ranks,
            )
            for number, (operation, rate) in enumerate(rates.items())
            for rank in range(ranks)
        ]
        return self

    def hook(
        self, command: str, seconds: float = 1.0, *, trial: int = -1, exit_code: int = 0, output: str = ""
    ) -> Self:
        """Add a command that the first rank ran: before the trials, or between a trial's save and its loads."""
        self.log.hooks.append(
            Hook(
                when="prepare" if trial < 0 else "between",
                trial=trial,
                command=command,
                start_s=0.0,
                duration_s=seconds,
                exit_code=exit_code,
                output=output,
                rank=0,
            )
        )
        return self

    def hosts(self, host: str, clock_s: float) -> Self:
        """Add where each rank ran, and how well the clocks of all but the first are known."""
        tasks = self._job.tasks_per_node
        self.log.ranks += [
            Rank(
                rank=rank,
                host=f"{host}{rank // tasks}",
                node=rank // tasks,
                process_id=rank % tasks,
                clock_uncertainty_s=clock_s if rank else 0.0,
            )
            for rank in range(self.ranks)
        ]
        return self

    def write(self, path: Path) -> Path:
        """Write the log; returns its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.log.write(path)
        return path

    def _sample(
        self,
        kind: str,
        phase: str,
        seconds: float,
        rank: int | None = None,
        start_s: float | None = None,
        *,
        cache: str = "n/a",
        resident: float = math.nan,
    ) -> None:
        """Add what one rank measured; without a rank, what the only process did, one thing after the other."""
        operation = "save" if kind == "save" else "load"
        if (operation, rank) in self._lost:
            return
        total, several = phase == "total", rank is not None
        whole = not several or (operation == "load" and self.log.state.get("sharding") == "replicated")
        reason = self._reasons.get(kind, "")
        sample = replace(
            SAMPLE,
            trial=self._trials,
            warmup=self._warmup,
            rank=rank or 0,
            operation=operation,
            phase=phase,
            start_s=float(len(self.log.samples)) if start_s is None else start_s,
            duration_s=seconds,
            state_bytes=GIB if whole else GIB // self.ranks,
            durability="committed" if operation == "save" and (several or phase in {"total", "commit"}) else "n/a",
            cache=cache,
            load_number={"save": -1, "cold": 0, "warm": 1}[kind],
            resident_fraction=resident,
            valid=not reason,
            reason=reason,
        )
        if total:
            sample = replace(sample, cpu_s=seconds if several else seconds / 2, peak_rss_bytes=GIB)
        if total and rank is not None:
            sample = replace(sample, peak_extra_bytes=(1 + rank) * 2**20)
        self.log.samples.append(sample)


def amended(path: Path, change: Callable[[TimingLog], object]) -> None:
    """Rewrite a log after this change of what it holds."""
    log = timing_log.read(path)
    change(log)
    log.write(path)
