"""Many ranks -> one operation: it lasts from the first start to the last end, and moves what all of them move.

An operation is what all ranks did together of a trial's save, or of one of its loads. It counts if every rank that
should have reported did so, and each of its samples may be used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

OPERATION = ["study", "job_id", "trial", "operation", "repeated"]
"""What sets one operation apart from all others. A trial may load more than once: `repeated` counts that."""

_SUMS = ("state_bytes", "cpu_s", "user_s", "system_s")

_SUMS_WHERE_KNOWN = (
    "device_read_bytes", "device_write_bytes", "read_calls", "write_calls", "minor_faults", "major_faults",
    "dirty_pages",
)  # fmt: skip
"""Columns where -1 is unknown: of one rank unknown is of all unknown."""

_LARGEST = ("peak_rss_bytes", "peak_extra_bytes")
"""Memory is what each rank has to have: of all together, what the largest one took."""

_MOST_NAMED = 5


def several_ranks(samples: pd.DataFrame, jobs: pd.DataFrame) -> pd.DataFrame:
    """The samples of jobs that have several ranks, with what each belongs to.

    Args:
        samples: of all jobs, as in `Results.samples`.
        jobs: as in `Results.jobs`.

    Returns:
        The samples with `repeated`, and `end_s`; `valid` and `reason` are their whole operation's, of all its phases
        and ranks. An operation in which a rank is missing isn't valid, and its reason names the rank.
    """
    expected = samples["nodes"] * samples["tasks_per_node"]
    loading = samples["operation"] == "load"
    if "load_ranks" in jobs and (jobs["load_ranks"].fillna(0) > 0).any():
        loads = jobs.set_index(["study", "job_id"])["load_ranks"].fillna(0).astype("int64")
        said = loads.reindex(pd.MultiIndex.from_frame(samples[["study", "job_id"]])).to_numpy()
        expected = expected.where(~loading | (said == 0), said)
    ranks = pd.concat([expected, samples["rank"] + 1], axis=1).max(axis=1)
    if not (ranks > 1).any():
        return samples.iloc[:0].assign(end_s=0.0, repeated=0)
    several = ranks.groupby([samples["study"], samples["job_id"]]).transform("max") > 1
    found = samples[several].assign(end_s=samples["start_s"] + samples["duration_s"], expected=expected)
    kind = found["cache"] == "warm"  # where a rank lacks its cold load, its warm one is still the others' warm one
    phases = [*OPERATION[:-1], "phase", "rank", kind]
    found["repeated"] = 2 * found.groupby(phases, sort=False).cumcount() + kind
    operations = found.groupby(OPERATION, sort=False)
    valid = operations["valid"].transform("all")
    reason = operations["reason"].transform("max")
    found["ended"] = found["rank"].where(found["phase"] == "total")  # a rank that was lost on the way has no total
    complete = found.groupby(OPERATION, sort=False)["ended"].transform("nunique") >= found["expected"]
    for _, operation in found[~complete].groupby(OPERATION, sort=False):
        ranks_missing = sorted({*range(int(operation["expected"].iloc[0]))} - set(operation["ended"].dropna()))
        reason[operation.index] = _with_missing(str(reason[operation.index[0]]), ranks_missing)
    return found.assign(valid=valid & complete, reason=reason).drop(columns=["expected", "ended"])


def _with_missing(reason: str, missing: Sequence[int]) -> str:
    """A reason that names the ranks of which there is nothing, unless it does so already."""
    if reason and all(re.search(rf"\brank {rank}\b", reason) for rank in missing[:_MOST_NAMED]):
        return reason
    said = f"missing: rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:_MOST_NAMED]))}"
    more = len(missing) - _MOST_NAMED
    said += f" and {more} more" if more > 0 else ""
    return f"{reason}; {said}" if reason else said


def whole_operations(samples: pd.DataFrame, several: pd.DataFrame) -> pd.DataFrame:
    """One row for each phase of each operation, of all ranks together.

    A load is proven cold where it is so on every rank.

    Args:
        samples: of all jobs; those of a single rank stay as they are.
        several: what `several_ranks` made of them.
    """
    if not len(several):
        return samples
    grouped = several.groupby([*OPERATION, "phase"], sort=False)
    whole = grouped.first().reset_index()
    whole["start_s"] = grouped["start_s"].min().to_numpy()
    whole["duration_s"] = grouped["end_s"].max().to_numpy() - whole["start_s"]
    whole["resident_fraction"] = grouped["resident_fraction"].max().to_numpy()
    whole["cache"] = grouped["cache"].max().to_numpy()  # in the alphabet, cold < cold-unproven < warm: the worst
    for column in _SUMS:
        everywhere = grouped[column].count() == grouped.size()
        whole[column] = grouped[column].sum().where(everywhere).to_numpy()
    for column in _SUMS_WHERE_KNOWN:
        whole[column] = grouped[column].sum().where(grouped[column].min() >= 0, -1).to_numpy()
    for column in _LARGEST:
        whole[column] = grouped[column].max().where(grouped[column].min() >= 0, -1).to_numpy()
    whole = whole[samples.columns].astype(samples.dtypes.to_dict())
    return pd.concat([samples.drop(index=several.index), whole], ignore_index=True)


def whole_ceilings(ceiling: pd.DataFrame) -> pd.DataFrame:
    """One row for each measurement of a ceiling: what all ranks moved at the same time, until the last had ended.

    A measurement that a rank has no part in, because it was gone, is no ceiling of all ranks, and left out.
    """
    expected = ceiling["nodes"] * ceiling["tasks_per_node"]
    several = (expected > 1) | (ceiling["rank"] > 0)
    if not several.any():
        return ceiling
    found = ceiling[several].assign(end_s=ceiling["start_s"] + ceiling["duration_s"], expected=expected)
    measurement = ["study", "job_id", "when", "operation", "buffered"]
    found["repeated"] = found.groupby([*measurement, "rank"], sort=False).cumcount()
    grouped = found.groupby([*measurement, "repeated"], sort=False)
    whole = grouped.first().reset_index()
    whole["size_bytes"] = grouped["size_bytes"].sum().to_numpy()
    whole["start_s"] = grouped["start_s"].min().to_numpy()
    whole["duration_s"] = grouped["end_s"].max().to_numpy() - whole["start_s"]
    whole["direct"] = grouped["direct"].all().to_numpy()
    complete = grouped["rank"].nunique().to_numpy() >= whole["expected"]
    whole = whole[complete][ceiling.columns].astype(ceiling.dtypes.to_dict())
    return pd.concat([ceiling[~several], whole], ignore_index=True)
