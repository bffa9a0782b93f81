"""Many ranks -> one operation: it lasts from the first start to the last end, and moves what all ranks move.

An operation is what all ranks did together in a trial's save, or in one of its loads. It is valid if every rank that
should have reported did so, and all of its samples are valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from jobs.timing_log import SAVE

OPERATION = ["study", "job_id", "trial", "operation", "load_number"]
"""The columns that identify one operation."""

_CACHES = ("n/a", "cold", "client-cold", "cold-unproven", "warm")
"""The state of the caches before an operation. With several ranks, the last one in this order counts."""

_SUMS = (
    "state_bytes", "cpu_s", "user_s", "system_s", "device_read_bytes", "device_write_bytes", "read_calls",
    "write_calls", "minor_faults", "major_faults", "dirty_pages",
)  # fmt: skip
"""Columns that add up over the ranks; unknown where one rank's value is."""

_LARGEST = ("peak_rss_bytes", "peak_extra_bytes")
"""Columns of which the largest value of a rank counts: every rank needs that much memory."""

UNPROVEN = "committed-unproven"
"""The durability of a committed save of which nobody can see whether it is on storage."""

_MOST_NAMED = 5


def several_ranks(samples: pd.DataFrame, jobs: pd.DataFrame) -> pd.DataFrame:
    """Select the samples of jobs that have several ranks, and judge every operation as a whole.

    Args:
        samples: of all jobs, as in `Results.samples`.
        jobs: as in `Results.jobs`.

    Returns:
        The samples with `end_s`. `valid` and `reason` are those of the whole operation: it is valid if all its
        samples are, its reason is the first one by time, and an operation in which a rank is missing isn't valid, and
        its reason names the rank.
    """
    expected = _expected_ranks(samples, jobs)
    ranks = pd.concat([expected, samples["rank"] + 1], axis=1).max(axis=1)
    if not (ranks > 1).any():
        return samples.iloc[:0].assign(end_s=0.0)
    several = ranks.groupby([samples["study"], samples["job_id"]]).transform("max") > 1
    chosen = samples[several].assign(end_s=samples["start_s"] + samples["duration_s"], expected=expected)
    chosen["ended"] = chosen["rank"].where(chosen["phase"] == "total")  # a rank that was lost on the way has no total
    operations = chosen.groupby(OPERATION, sort=False)
    valid = operations["valid"].transform("all")
    complete = operations["ended"].transform("nunique") >= chosen["expected"]
    reason = _first_reason(chosen)
    for _, operation in chosen[~complete].groupby(OPERATION, sort=False):
        missing = sorted({*range(int(operation["expected"].iloc[0]))} - set(operation["ended"].dropna()))
        reason[operation.index] = _with_missing(str(reason[operation.index[0]]), missing)
    return chosen.assign(valid=valid & complete, reason=reason).drop(columns=["expected", "ended"])


def _expected_ranks(samples: pd.DataFrame, jobs: pd.DataFrame) -> pd.Series:
    """Return, per sample, how many ranks should have reported its operation."""
    expected = samples["nodes"] * samples["tasks_per_node"]
    if "load_ranks" not in jobs or not (jobs["load_ranks"].fillna(0) > 0).any():
        return expected
    of_job = jobs.set_index(["study", "job_id"])["load_ranks"].fillna(0).astype("int64")
    load_ranks = of_job.reindex(pd.MultiIndex.from_frame(samples[["study", "job_id"]])).to_numpy()
    return expected.where((samples["operation"] == SAVE) | (load_ranks == 0), load_ranks)


def _first_reason(samples: pd.DataFrame) -> pd.Series:
    """Return the first reason, by time, why one of an operation's samples isn't valid; empty if there is none."""
    ordered = samples.sort_values("start_s", kind="stable")
    ordered["reason"] = ordered["reason"].where(ordered["reason"] != "")
    return ordered.groupby(OPERATION, sort=False)["reason"].transform("first").fillna("").reindex(samples.index)


def _with_missing(reason: str, missing: Sequence[int]) -> str:
    """Add the ranks that never reported to a reason, unless it names them already."""
    if reason and all(re.search(rf"\brank {rank}\b", reason) for rank in missing[:_MOST_NAMED]):
        return reason
    numbers = ", ".join(map(str, missing[:_MOST_NAMED]))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    message = f"missing: {'ranks' if len(missing) > 1 else 'rank'} {numbers}{more}"
    return f"{reason}; {message}" if reason else message


def whole_operations(samples: pd.DataFrame, several: pd.DataFrame) -> pd.DataFrame:
    """Fold the ranks: one row per operation and phase.

    A load is proven cold, and a save proven durable, where it is proven on every rank.

    Args:
        samples: of all jobs; samples of a single rank are returned unchanged.
        several: the samples of several ranks, as `several_ranks` returns them.
    """
    if not len(several):
        return samples
    marked = several.assign(cache=ordered_caches(several["cache"]), unproven=several["durability"] == UNPROVEN)
    grouped = marked.groupby([*OPERATION, "phase"], sort=False)
    whole = grouped.first().reset_index()
    whole["start_s"] = grouped["start_s"].min().to_numpy()
    whole["duration_s"] = grouped["end_s"].max().to_numpy() - whole["start_s"]
    whole["resident_fraction"] = grouped["resident_fraction"].max().to_numpy()
    whole["cache"] = grouped["cache"].max().to_numpy()
    unproven = grouped["unproven"].any().to_numpy()
    whole["durability"] = whole["durability"].where(~unproven, UNPROVEN)
    for columns, folded in ((_SUMS, grouped[list(_SUMS)].sum()), (_LARGEST, grouped[list(_LARGEST)].max())):
        known = grouped[list(columns)].count().eq(grouped.size(), axis=0)
        whole[list(columns)] = folded.where(known).to_numpy()
    whole = whole[samples.columns].astype(samples.dtypes.to_dict())
    return pd.concat([samples.drop(index=several.index), whole], ignore_index=True)


def ordered_caches(caches: pd.Series) -> pd.Series:
    """Return states of the page cache as an ordered category, so that `max` is the worst one."""
    others = sorted(set(caches) - set(_CACHES))  # a damaged log may hold any text
    return caches.astype(pd.CategoricalDtype([*_CACHES, *others], ordered=True))


def whole_ceilings(ceiling: pd.DataFrame) -> pd.DataFrame:
    """Fold the ranks of every ceiling: what all of them moved at the same time, until the last had ended.

    A measurement that lacks a rank is no ceiling of all ranks, and is left out.
    """
    expected = ceiling["nodes"] * ceiling["tasks_per_node"]
    several = (expected > 1) | (ceiling["rank"] > 0)
    if not several.any():
        return ceiling
    chosen = ceiling[several].assign(end_s=ceiling["start_s"] + ceiling["duration_s"], expected=expected)
    measurement = ["study", "job_id", "when", "operation", "buffered"]
    chosen["repetition"] = chosen.groupby([*measurement, "rank"], sort=False).cumcount()
    grouped = chosen.groupby([*measurement, "repetition"], sort=False)
    whole = grouped.first().reset_index()
    whole["size_bytes"] = grouped["size_bytes"].sum().to_numpy()
    whole["start_s"] = grouped["start_s"].min().to_numpy()
    whole["duration_s"] = grouped["end_s"].max().to_numpy() - whole["start_s"]
    whole["direct"] = grouped["direct"].all().to_numpy()
    complete = grouped["rank"].nunique().to_numpy() >= whole["expected"]
    whole = whole[complete][ceiling.columns].astype(ceiling.dtypes.to_dict())
    return pd.concat([ceiling[~several], whole], ignore_index=True)
