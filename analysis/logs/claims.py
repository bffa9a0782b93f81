"""What jobs can claim: that their saves are durable, and that their loads come from the device.

Logs say since 2026-11-26 whether that is proven. Earlier ones took what they couldn't see for proof on filesystems
with caches of their own, and are read as what they can claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.logs.columns import Log
from analysis.logs.operations import UNPROVEN

PROVEN = "proven"
COLD, CLIENT_COLD, COLD_UNPROVEN = "cold from the device, where said", "not in this node's cache", "unproven"
"""The values of `cold_loads`."""


def claims(storage: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of `Results.jobs` that tell what a job can claim, from its log's facts about the target."""
    caveat = str(storage.get("cache_caveat") or "")
    durability = str(storage.get("durability_proof") or (caveat and _unexamined(storage)) or PROVEN)
    cold = str(storage.get("cold_proof") or caveat or PROVEN)
    return {
        "durability": PROVEN if durability == PROVEN else "unproven",
        "cold_loads": COLD if cold == PROVEN else COLD_UNPROVEN,
        "storage_durability_proof": durability,
        "storage_cold_proof": cold,
        "storage_fsync_guarantee": str(storage.get("fsync_guarantee", "unknown")),
    }


def _unexamined(storage: Mapping[str, Any]) -> str:
    return f"{storage.get('filesystem', 'the filesystem')} keeps data where the job's kernel couldn't see, nor ask"


def _is_early(log: Log) -> bool:
    """Return whether a log claims more than its filesystem lets a kernel see."""
    storage = log.attributes["storage"]
    return "cold_proof" not in storage and bool(storage.get("cache_caveat"))


def as_claimed(samples: pd.DataFrame, logs: list[Log]) -> pd.DataFrame:
    """Reduce the samples of early logs to what they can claim: proof that isn't one, and counts that nobody made."""
    early = [log for log in logs if _is_early(log)]
    if not early:
        return samples
    keys = pd.MultiIndex.from_frame(samples[["study", "job_id"]])

    def of(chosen: list[Log]) -> pd.Series:
        return pd.Series(keys.isin([(log.header.study, log.header.job_id) for log in chosen]), samples.index)

    fuse = of([log for log in early if str(log.attributes["storage"].get("filesystem")).startswith("fuse")])
    shifted = of([log for log in early if log.header.read_shift > 0])
    return samples.assign(
        durability=samples["durability"].mask(of(early) & (samples["durability"] == "committed"), UNPROVEN),
        cache=samples["cache"].mask(shifted & (samples["cache"] == "cold"), "client-cold"),
        dirty_pages=samples["dirty_pages"].mask(fuse),
        device_read_bytes=samples["device_read_bytes"].mask(fuse),
    )


def with_cold_loads(jobs: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Name the jobs whose loads weren't in their node's cache by that."""
    client = samples[samples["cache"] == "client-cold"]
    if not len(client):
        return jobs
    keys = pd.MultiIndex.from_frame(jobs[["study", "job_id"]])
    named = keys.isin(pd.MultiIndex.from_frame(client[["study", "job_id"]].drop_duplicates()))
    return jobs.assign(cold_loads=jobs["cold_loads"].mask(named, CLIENT_COLD))
