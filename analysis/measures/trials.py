"""What each method measured, trial by trial: the valid samples that advice, projection and figures are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pandas as pd

from analysis.logs.frames import Results
from analysis.measures.ceilings import ways
from analysis.measures.comparison import REFERENCE, Rows
from analysis.measures.groups import agreement, groups
from analysis.measures.statistics import Interval, Timed, median_interval
from analysis.measures.stragglers import Spread, spreads

COLD, UNPROVEN, WARM = "cold", "cold-unproven", "warm"

UNKNOWN = "unknown"
"""A fact that the logs don't hold: they are older than it."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Valid measured trials of one operation, of all ranks together, in order of time; all three are as long."""

    durations_s: tuple[float, ...]
    jobs: tuple[str, ...]
    """The job that each belongs to."""
    started_s: tuple[float, ...]
    """Seconds since 1970."""
    moved_bytes: float = math.nan
    """What each of them moved: the state, or more where every rank loads all of it."""
    rounds: tuple[str, ...] = ()
    """The round that each belongs to; empty where every job is a round of its own."""

    def __len__(self) -> int:
        return len(self.durations_s)

    def timed(self) -> Timed:
        """As `differences` compares them."""
        return Timed(self.durations_s, self.jobs, self.rounds)

    def median(self) -> Interval:
        """Seconds, with the interval that the jobs support."""
        return _median(self.durations_s, self.jobs)

    def gbps(self) -> Interval:
        """The rate at the median, and at the ends of its interval: GB/s, with GB = 1e9 bytes; NaN without a time."""
        median = self.median()
        ends = (median.estimate, median.high, median.low)
        return Interval(*(self.moved_bytes / end / 1e9 if end > 0 else math.nan for end in ends))


@lru_cache(maxsize=4096)
def _median(durations_s: tuple[float, ...], jobs: tuple[str, ...]) -> Interval:
    return median_interval(durations_s, jobs)  # a thousand resamples, and every table and figure asks for it


@dataclass(frozen=True, slots=True)
class Measured:
    """What one strategy, with its options, measured in one setting."""

    label: str
    strategy: str
    facts: Mapping[str, str]
    """What the strategy says of itself; a log holds what was known when it was written."""
    save: Trials
    """Until the checkpoint was committed."""
    phases: Mapping[str, Trials]
    """The parts of a save, in their order."""
    loads: Mapping[str, Trials]
    """By the page cache before: `COLD`, `UNPROVEN`, `WARM`; only those that were measured."""
    size_bytes: float
    """Median of the files' sizes; NaN if nothing was written."""
    file_bytes: float
    """Mean size of a file; NaN if nothing was written."""
    state_bytes: int
    """What a save moves: the state."""
    spreads: tuple[Spread, ...] = ()
    """How its ranks differ; empty where there is one."""

    def fact(self, name: str) -> str:
        """What the strategy says about one thing; `UNKNOWN` where the log is older than that."""
        return str(self.facts.get(name, UNKNOWN))

    def cold_load(self) -> tuple[str, Trials]:
        """The loads that say most about a restart, and their kind: proven cold, else unproven, else warm."""
        for kind in (COLD, UNPROVEN, WARM):
            if kind in self.loads:
                return kind, self.loads[kind]
        return UNKNOWN, Trials((), (), ())


@dataclass(frozen=True, slots=True)
class Setting:
    """Where methods may be compared: one target at one scale, one state, one kind of node."""

    study: str
    target: str
    nodes: int
    tasks_per_node: int
    apart: str
    node_local: bool | None
    """Whether each node has such a target of its own; None where the logs don't say."""
    methods: tuple[Measured, ...]
    """The reference first, then by label; also those without a valid trial."""
    ceilings_gbps: Mapping[str, float]
    """What the target did by itself, `write` and `read`, for all ranks at the same time: total bytes over total time;
    NaN where not measured."""
    ceiling_ways: Mapping[str, str] = field(default_factory=dict)
    """How it was reached, by the same keys (`ceilings.best`)."""
    agreed: Mapping[str, str] = field(default_factory=dict)
    """What all of its jobs agree in, by the keys of `guard.MUST_AGREE`."""

    @property
    def title(self) -> str:
        """In words, as in the tables' titles."""
        where = f"{self.study}, target {self.target}, {self.nodes}x{self.tasks_per_node}"
        return f"{where} ({self.apart})" if self.apart else where

    @property
    def place(self) -> str:
        """The same for all scales."""
        where = f"{self.study}, target {self.target}"
        return f"{where} ({self.apart})" if self.apart else where


def settings(results: Results) -> list[Setting]:
    """Everything that was measured, by study, target and scale."""
    started = results.jobs.dropna(subset=["clock_zero_unix_s"]).set_index(["study", "job_id"])["clock_zero_unix_s"]
    zeros = {key: float(value) for key, value in started.items()}
    rows = Rows(results)
    found = []
    for group in groups(results.jobs):
        there, work = rows.of(group.jobs), rows.work_of(group.jobs)
        labels = sorted(set(group.jobs["label"].dropna()), key=lambda label: (label != REFERENCE, label))
        found.append(
            Setting(
                group.study,
                group.target,
                group.nodes,
                group.tasks_per_node,
                group.apart,
                _node_local(group.jobs),
                tuple(_measured(group.jobs[group.jobs["label"] == label], there, zeros, work) for label in labels),
                _ceilings(there.ceiling),
                {name: ways(there.ceiling[there.ceiling["operation"] == name]) for name in ("write", "read")},
                agreement(group.jobs),
            )
        )
    return found


def _node_local(jobs: pd.DataFrame) -> bool | None:
    said = set(jobs["node_local"].dropna().map(bool)) if "node_local" in jobs else set()
    return said.pop() if len(said) == 1 else None


def _ceilings(rows: pd.DataFrame) -> dict[str, float]:
    rates = {}
    for operation in ("write", "read"):
        chosen = rows[rows["operation"] == operation]
        seconds = float(chosen["duration_s"].sum())
        rates[operation] = float(chosen["size_bytes"].sum()) / seconds / 1e9 if seconds else math.nan
    return rates


def _measured(jobs: pd.DataFrame, there: Results, zeros: Mapping[Any, float], work: pd.DataFrame) -> Measured:
    study, ids = str(jobs["study"].iloc[0]), set(jobs["job_id"])
    samples = there.samples[there.samples["job_id"].isin(ids)]
    valid = samples[samples["valid"] & ~samples["warmup"] & samples["duration_s"].notna()]
    totals = valid[valid["phase"] == "total"]
    saves, loads = valid[valid["operation"] == "save"], totals[totals["operation"] == "load"]
    disk = there.disk[there.disk["job_id"].isin(ids)]
    disk = disk.merge(samples[~samples["warmup"]][["job_id", "trial"]].drop_duplicates(), on=["job_id", "trial"])

    def trials(rows: pd.DataFrame) -> Trials:
        begun = [zeros[study, job] + start for job, start in zip(rows["job_id"], rows["start_s"], strict=True)]
        order = sorted(range(len(rows)), key=lambda row: begun[row])
        durations, names = [float(each) for each in rows["duration_s"]], [str(each) for each in rows["job_id"]]
        return Trials(
            tuple(durations[row] for row in order),
            tuple(names[row] for row in order),
            tuple(begun[row] for row in order),
            float(rows["state_bytes"].median()),
            tuple(str(rows["round"].iloc[row]) for row in order),
        )

    kinds = [kind for kind in (COLD, UNPROVEN, WARM) if (loads["cache"] == kind).any()]
    parts = [str(phase) for phase in saves["phase"].unique() if phase != "total"]
    facts = [_facts(text) for text in jobs["strategy_facts"].dropna() if text]
    sizes = totals["state_bytes"] if not (kept := totals["operation"] == "save").any() else totals["state_bytes"][kept]
    strategies = jobs["strategy"].dropna()
    return Measured(
        label=str(jobs["label"].iloc[0]),
        strategy=str(strategies.iloc[0]) if len(strategies) else UNKNOWN,
        facts=facts[0] if facts else {},
        save=trials(saves[saves["phase"] == "total"]),
        phases={phase: trials(saves[saves["phase"] == phase]) for phase in parts},
        loads={kind: trials(loads[loads["cache"] == kind]) for kind in kinds},
        size_bytes=float(disk["apparent_bytes"].median()) if len(disk) else math.nan,
        file_bytes=float(disk["apparent_bytes"].sum() / files) if (files := disk["file_count"].sum()) else math.nan,
        state_bytes=int(sizes.median()) if len(sizes) else 0,
        spreads=spreads(work[work["job_id"].isin(ids)]),
    )


def _facts(text: str) -> dict[str, str]:
    """The facts in a log; none where it holds something else."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in facts.items()} if isinstance(facts, dict) else {}
