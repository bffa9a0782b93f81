"""Computes how the ranks of an operation differ: the work of single ranks, which one was last, and how often.

A rank's own work is what it does before it waits for the others: in a save its call and its sync, in a load all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.logs.operations import OPERATION, ordered_caches
from analysis.measures.operation import Operation, kinds_of

_JOB = ["study", "job_id"]


@dataclass(frozen=True, slots=True)
class Straggler:
    """The rank or host that was most often the last to end its own work."""

    name: str
    """A rank's number, or a host; empty where no trial shows it."""
    trials: int
    """The number of trials in which it was the last."""


NO_STRAGGLER = Straggler("", 0)


@dataclass(frozen=True, slots=True)
class Imbalance:
    """How the ranks of one method differ in one operation.

    Times are medians over the trials, of the fastest, the middle and the slowest rank of a trial.
    """

    operation: Operation
    ranks: int
    trials: int
    fastest_s: float
    median_s: float
    slowest_s: float
    slowest_over_median: float
    """The median of this ratio over the trials; NaN where a clock can't tell the time from zero."""
    last_rank: Straggler
    last_host: Straggler
    unsure: int
    """Trials without a last rank: the last two ended closer together than their clocks are known."""
    numbers: tuple[int, ...]
    """The numbers of the ranks, in order."""
    relative: tuple[float, ...]
    """The own work of the ranks over that of the middle rank: medians over the trials."""
    host_of_last: str
    """The host of `last_rank` in most of the trials in which it was last."""


def own_work(several: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Sum up the own work of every rank in all valid measured operations of jobs with several ranks.

    Args:
        several: samples, as `operations.several_ranks` returns them.
        ranks: as in `Results.ranks`.

    Returns:
        One row per operation and rank, of operations of at least two ranks: the job's `study` and `job_id`, `trial`,
        `kind` (the value of an `Operation`), `rank`, `own_s`, `end_s`, and, where the log has them, `host` and
        `clock_uncertainty_s`.
    """
    if not len(several):
        return pd.DataFrame(
            columns=[*OPERATION, "rank", "cache", "own_s", "end_s", "kind", "host", "clock_uncertainty_s"]
        )
    is_save = several["operation"] == "save"
    is_own = several["phase"].isin(["call", "sync"]).where(is_save, several["phase"] == "total")
    chosen = several[several["valid"] & ~several["warmup"] & is_own]
    grouped = chosen.groupby([*OPERATION, "rank"], sort=False)
    work = grouped[["cache"]].first()
    work["own_s"] = grouped["duration_s"].sum()
    work["end_s"] = grouped["end_s"].max()
    work = work.reset_index()
    work = work[work.groupby(OPERATION, sort=False)["rank"].transform("nunique") > 1]
    work["cache"] = ordered_caches(work["cache"])
    worst = work.groupby(OPERATION, sort=False)["cache"].transform("max").astype("str")
    work["kind"] = kinds_of(work["operation"], worst)
    where = ranks[[*_JOB, "rank", "host", "clock_uncertainty_s"]]
    return work.merge(where, on=[*_JOB, "rank"], how="left", validate="many_to_one")


def imbalances(work: pd.DataFrame) -> tuple[Imbalance, ...]:
    """Describe how the ranks differ, per operation; empty where no operation had several.

    Args:
        work: of one method's jobs at one scale, as `own_work` returns it.
    """
    by_operation = ((operation, work[work["kind"] == operation.value]) for operation in Operation)
    return tuple(_imbalance(operation, chosen) for operation, chosen in by_operation if len(chosen))


def _imbalance(operation: Operation, work: pd.DataFrame) -> Imbalance:
    work = work.sort_values([*OPERATION, "end_s"], kind="stable").reset_index(drop=True)
    trials = work.groupby(OPERATION, sort=False)
    times = trials["own_s"].agg(["min", "median", "max"])
    ratios = (times["max"] / times["median"]).where(times["median"] > 0)
    relative = (work["own_s"] / trials["own_s"].transform("median")).groupby(work["rank"]).median()
    last, before = trials.tail(1), work[trials.cumcount(ascending=False) == 1]
    gap_s = last["end_s"].to_numpy() - before["end_s"].to_numpy()
    known_s = last["clock_uncertainty_s"].fillna(0).to_numpy() + before["clock_uncertainty_s"].fillna(0).to_numpy()
    sure = last[gap_s > known_s]
    rank = _most_often(sure["rank"])
    return Imbalance(
        operation=operation,
        ranks=int(work["rank"].nunique()),
        trials=len(times),
        fastest_s=float(times["min"].median()),
        median_s=float(times["median"].median()),
        slowest_s=float(times["max"].median()),
        slowest_over_median=float(ratios.median()) if ratios.notna().all() else math.nan,
        last_rank=rank,
        last_host=_most_often(sure["host"].dropna()),
        unsure=len(last) - len(sure),
        numbers=tuple(int(number) for number in relative.index),
        relative=tuple(float(value) for value in relative.replace([np.inf], math.nan)),
        host_of_last=_most_often(sure[sure["rank"].astype(str) == rank.name]["host"].dropna()).name,
    )


def _most_often(values: pd.Series) -> Straggler:
    """Return the most frequent value; of several the first by name."""
    counts = values.value_counts()
    if not len(counts):
        return NO_STRAGGLER
    most = int(counts.max())
    return Straggler(str(min(counts[counts == most].index)), most)
