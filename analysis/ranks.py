"""Many ranks -> one operation: it lasts from the first start to the last end, and moves what all of them move."""

from __future__ import annotations

import pandas as pd

_SUMS = ("state_bytes", "cpu_s", "user_s", "system_s")

_SUMS_WHERE_KNOWN = (
    "peak_rss_bytes", "peak_extra_bytes", "device_read_bytes", "device_write_bytes", "read_calls", "write_calls",
    "minor_faults", "major_faults", "dirty_pages",
)  # fmt: skip
"""Columns where -1 is unknown: of one rank unknown is of all unknown."""


def whole_operations(samples: pd.DataFrame) -> pd.DataFrame:
    """One row for each phase of each operation, of all ranks together; `samples` as they are where no job has several.

    It is valid where it is so on every rank, and its load is proven cold where it is so on every rank.
    """
    if not (samples["rank"] > 0).any():
        return samples
    trial = ["study", "job_id", "trial", "operation", "phase"]
    # A trial may load more than once: each rank's first load belongs with the others' first.
    ordered = samples.assign(occurrence=samples.groupby([*trial, "rank"], sort=False).cumcount())
    ordered["end_s"] = ordered["start_s"] + ordered["duration_s"]
    grouped = ordered.groupby([*trial, "occurrence"], sort=False)
    whole = grouped.first().reset_index()
    whole["start_s"] = grouped["start_s"].min().to_numpy()
    whole["duration_s"] = grouped["end_s"].max().to_numpy() - whole["start_s"]
    whole["resident_fraction"] = grouped["resident_fraction"].max().to_numpy()
    whole["valid"] = grouped["valid"].all().to_numpy()
    whole["cache"] = grouped["cache"].max().to_numpy()  # in the alphabet, cold < cold-unproven < warm: the worst
    whole["reason"] = grouped["reason"].max().to_numpy()
    for column in _SUMS:
        whole[column] = grouped[column].sum(min_count=1).to_numpy()
    for column in _SUMS_WHERE_KNOWN:
        known = grouped[column].min().to_numpy() >= 0
        whole[column] = grouped[column].sum().where(known, -1).to_numpy()
    return whole[samples.columns].astype(samples.dtypes.to_dict())
