"""Computes what the target can do by itself: the faster of direct and buffered I/O per job, writes and reads apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import pandas as pd

from analysis.measures.operation import Direction

_COLD_BELOW = 0.01
"""A read through the page cache measures the target only if less than this fraction of the pages was in it before."""

_KEY = ["study", "job_id", "operation"]

DIRECT, BUFFERED, UNCOMPARED = "direct", "buffered", "direct, with no buffered I/O to compare"
"""How a ceiling was reached. The last applies to logs written before both ways were measured."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The rate of the target's own writes or reads, for all ranks at the same time."""

    gbps: float
    """Total bytes over total time, in GB/s with GB = 1e9 bytes; NaN where it was not measured."""
    way: str
    """How it was reached; empty where it was not measured."""


def ceilings(rows: pd.DataFrame) -> dict[Direction, Ceiling]:
    """Return the ceilings of writes and reads, from rows that `best` chose."""
    of_direction = {}
    for direction in get_args(Direction):
        chosen = rows[rows["operation"] == direction]
        seconds = float(chosen["duration_s"].sum())
        gbps = float(chosen["size_bytes"].sum()) / seconds / 1e9 if seconds else math.nan
        of_direction[direction] = Ceiling(gbps, " or ".join(sorted(set(chosen["way"]))))
    return of_direction


def of_target(ceiling: pd.DataFrame) -> pd.DataFrame:
    """Select the rows that measured the target, and not the page cache."""
    return ceiling[ceiling["direct"] | ~(ceiling["resident_fraction"] >= _COLD_BELOW)]


def best(ceiling: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of the faster way per job and operation, with that `way`; rates are total bytes over total time.

    On some network filesystems direct I/O is many times slower than what every strategy does, and on some disks faster.
    """
    ceiling = of_target(ceiling)
    sums = ceiling.groupby([*_KEY, "buffered"], sort=False)[["size_bytes", "duration_s"]].sum()
    rates = (sums["size_bytes"] / sums["duration_s"]).rename("rate").reset_index()
    rates["ways"] = rates.groupby(_KEY, sort=False)["buffered"].transform("size")
    fastest = rates.sort_values("rate", ascending=False, kind="stable").drop_duplicates(_KEY).drop(columns="rate")
    chosen = ceiling.merge(fastest, on=[*_KEY, "buffered"])
    way = pd.Series(BUFFERED, index=chosen.index).where(~chosen["direct"], DIRECT)
    chosen["way"] = way.where(~chosen["direct"] | (chosen["ways"] > 1), UNCOMPARED)
    return chosen.drop(columns="ways")
