"""What the target can do by itself: of each job the faster of direct and buffered I/O, writes and reads apart."""

from __future__ import annotations

import pandas as pd

_COLD_BELOW = 0.01
"""A read through the page cache is one of the target only if less than this share of the pages was cached before."""

_KEY = ["study", "job_id", "operation"]

DIRECT, BUFFERED, UNCOMPARED = "direct", "buffered", "direct, with no buffered I/O to compare"
"""How a ceiling was reached. The last is that of logs from before both were measured."""


def best(ceiling: pd.DataFrame) -> pd.DataFrame:
    """The rows of the faster way, for each job and operation, with that `way`; rates are total bytes over total time.

    On some network filesystems direct I/O is many times slower than what every strategy does, and on some disks faster.
    """
    cold = ~ceiling["buffered"] | ~(ceiling["resident_fraction"] >= _COLD_BELOW)
    sums = ceiling[cold].groupby([*_KEY, "buffered"], sort=False)[["size_bytes", "duration_s"]].sum()
    rates = (sums["size_bytes"] / sums["duration_s"]).rename("rate").reset_index()
    rates["ways"] = rates.groupby(_KEY, sort=False)["buffered"].transform("size")
    fastest = rates.sort_values("rate", ascending=False, kind="stable").drop_duplicates(_KEY).drop(columns="rate")
    chosen = ceiling.merge(fastest, on=[*_KEY, "buffered"])
    way = pd.Series(BUFFERED, index=chosen.index).where(~chosen["direct"], DIRECT)
    chosen["way"] = way.where(~chosen["direct"] | (chosen["ways"] > 1), UNCOMPARED)
    return chosen.drop(columns="ways")


def ways(rows: pd.DataFrame) -> str:
    """How these ceilings were reached; empty if there is none."""
    return " or ".join(sorted(set(rows["way"])))
