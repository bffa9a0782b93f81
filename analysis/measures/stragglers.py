"""How the ranks of an operation differ: each one's own work, who was last, and how often.

A rank's own work is what it does before it waits for the others: of a save its call and its sync, of a load all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.logs.operations import OPERATION, ordered_caches

SAVE = "save"

KINDS = {SAVE: "save", "cold": "load, cold", "cold-unproven": "load, not proven cold", "warm": "load, warm"}
"""The operations whose ranks are compared, in this order, and what tables call them."""

_JOB = ["study", "job_id"]


@dataclass(frozen=True, slots=True)
class Straggler:
    """Who was the last to end its own work, most often."""

    name: str
    """A rank's number, or a host; empty where no trial tells."""
    trials: int
    """In how many trials it was."""


NOBODY = Straggler("", 0)


@dataclass(frozen=True, slots=True)
class Spread:
    """How the ranks of one method differ in one operation.

    Times are medians over the trials, of the fastest, the middle and the slowest rank in each of them.
    """

    kind: str
    """One of `KINDS`."""
    ranks: int
    trials: int
    fastest_s: float
    median_s: float
    slowest_s: float
    slowest_over_median: float
    """The median over the trials of this ratio in each; NaN where no clock can tell the time from zero."""
    last_rank: Straggler
    last_host: Straggler
    unsure: int
    """Trials in which the last two ended nearer to each other than their clocks are known: nobody was last in them."""
    numbers: tuple[int, ...]
    """Of the ranks, in their order."""
    relative: tuple[float, ...]
    """Each one's own work over that of the middle rank: medians over the trials."""
    host_of_last: str
    """Where `last_rank` ran in most of the trials in which it was last."""


def own_work(several: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """What each rank did by itself in each valid measured operation of jobs with several ranks.

    Args:
        several: samples, as `ranks.several_ranks` gives them.
        ranks: as in `Results.ranks`.

    Returns:
        One row for each rank of each operation of at least two: the job's `study` and `job_id`, `trial`, `kind` (one of
        `KINDS`), `rank`, `own_s`, `end_s`, `host` and `clock_uncertainty_s`, where the log says them.
    """
    if not len(several):
        return pd.DataFrame(
            columns=[*OPERATION, "rank", "cache", "own_s", "end_s", "kind", "host", "clock_uncertainty_s"]
        )
    own = several["phase"].isin(["call", "sync"]).where(several["operation"] == SAVE, several["phase"] == "total")
    chosen = several[several["valid"] & ~several["warmup"] & own]
    grouped = chosen.groupby([*OPERATION, "rank"], sort=False)
    work = grouped[["cache"]].first()
    work["own_s"] = grouped["duration_s"].sum()
    work["end_s"] = grouped["end_s"].max()
    work = work.reset_index()
    work = work[work.groupby(OPERATION, sort=False)["rank"].transform("nunique") > 1]
    worst = work.assign(cache=ordered_caches(work["cache"])).groupby(OPERATION, sort=False)["cache"].transform("max")
    work["kind"] = worst.astype("str").where(work["operation"] != SAVE, SAVE)
    where = ranks[[*_JOB, "rank", "host", "clock_uncertainty_s"]]
    return work.merge(where, on=[*_JOB, "rank"], how="left", validate="many_to_one")


def spreads(work: pd.DataFrame) -> tuple[Spread, ...]:
    """How the ranks differ in each kind of operation; nothing where no operation had several.

    Args:
        work: of one method's jobs at one scale, as `own_work` gives it.
    """
    return tuple(_spread(kind, chosen) for kind in KINDS if len(chosen := work[work["kind"] == kind]))


def _spread(kind: str, work: pd.DataFrame) -> Spread:
    work = work.sort_values([*OPERATION, "end_s"], kind="stable").reset_index(drop=True)
    trials = work.groupby(OPERATION, sort=False)
    each = trials["own_s"].agg(["min", "median", "max"])
    ratios = (each["max"] / each["median"]).where(each["median"] > 0)
    relative = (work["own_s"] / trials["own_s"].transform("median")).groupby(work["rank"]).median()
    last, before = trials.tail(1), work[trials.cumcount(ascending=False) == 1]
    gap_s = last["end_s"].to_numpy() - before["end_s"].to_numpy()
    known_s = last["clock_uncertainty_s"].fillna(0).to_numpy() + before["clock_uncertainty_s"].fillna(0).to_numpy()
    told = last[gap_s > known_s]
    rank = _most_often(told["rank"])
    return Spread(
        kind=kind,
        ranks=int(work["rank"].nunique()),
        trials=len(each),
        fastest_s=float(each["min"].median()),
        median_s=float(each["median"].median()),
        slowest_s=float(each["max"].median()),
        slowest_over_median=float(ratios.median()) if ratios.notna().all() else math.nan,
        last_rank=rank,
        last_host=_most_often(told["host"].dropna()),
        unsure=len(last) - len(told),
        numbers=tuple(int(number) for number in relative.index),
        relative=tuple(float(value) for value in relative.replace([np.inf], math.nan)),
        host_of_last=_most_often(told[told["rank"].astype(str) == rank.name]["host"].dropna()).name,
    )


def _most_often(values: pd.Series) -> Straggler:
    """The value that is there most often; of several the first by name."""
    counts = values.value_counts()
    if not len(counts):
        return NOBODY
    most = int(counts.max())
    return Straggler(str(min(counts[counts == most].index)), most)
