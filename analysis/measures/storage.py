"""Describes what a target lies on, as its jobs recorded it, and what it does by itself: ceilings and small files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from analysis.measures.ceilings import of_target
from analysis.measures.operation import Direction
from jobs.timing_log import devices

UNKNOWN_FACT = "unknown"
"""How a fact begins that a job could not have; the reason follows in brackets."""

_FACTS = (
    "filesystem", "filesystem_version", "source", "servers", "options", "layout", "written_layout", "device",
    "fsync_guarantee", "durability_proof", "cold_proof", "drain_to",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """What a target lies on. Facts that jobs recorded differently are joined; older logs lack most of them."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """Texts, by the names of the attributes of a log's `/storage`; those that no log has are missing."""
    devices: tuple[Mapping[str, object], ...] = ()
    """The devices below, as in `jobs.timing_log.devices.parsed`; empty where they are unknown."""
    below: frozenset[str] = frozenset()
    """In words: the disks at the bottom, with the hosts that they belong to, or the volume of its servers."""
    capacity_bytes: float = math.nan
    used_fraction: float = math.nan
    """The largest of all jobs, when each began."""
    ceilings: Mapping[tuple[Direction, bool], float] = field(default_factory=dict)
    """(direction, whether it really went past the page cache) -> GB/s: total bytes over total time."""
    ignored_direct: tuple[Direction, ...] = ()
    """The directions in which direct I/O was asked for, and the filesystem went through the page cache."""
    small_files: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Ranks at the same time -> operation -> how many per second all of them did."""

    def fact(self, name: str) -> str:
        """Return a fact; empty where no log has it."""
        return self.facts.get(name, "")

    @property
    def is_fuse(self) -> bool:
        """Whether a program of the node implements the filesystem."""
        return self.fact("filesystem").startswith("fuse")


NOTHING_KNOWN = Storage()


def storage_of(jobs: pd.DataFrame, ceiling: pd.DataFrame, metadata: pd.DataFrame) -> Storage:
    """Describe the storage below the jobs of one target at one scale.

    Args:
        jobs: rows of `Results.jobs`.
        ceiling: their ceilings, with all ranks of a measurement folded into one row.
        metadata: their operations on small files.
    """
    ceiling = of_target(ceiling)
    below = [devices.parsed(text) for text in _values(jobs, "device")]
    asked = ceiling[~ceiling["buffered"] & ceiling["operation"].isin(["write", "read"])]
    ignored = [direction for direction in ("write", "read") if _ignored(asked[asked["operation"] == direction])]
    return Storage(
        facts={name: joined(values) for name in _FACTS if (values := _values(jobs, name))},
        devices=tuple(next(filter(None, below), [])),
        below=_disks(jobs) | _volumes(jobs),
        capacity_bytes=_largest(_numbers(jobs, "capacity_bytes")),
        used_fraction=_largest(1 - _numbers(jobs, "free_bytes") / _numbers(jobs, "capacity_bytes")),
        ceilings=_ceilings(ceiling),
        ignored_direct=tuple(ignored),  # type: ignore[arg-type]
        small_files=_small_files(metadata),
    )


def joined(values: Sequence[str]) -> str:
    """Join what jobs recorded differently: of `key=number` in all of them the least and the largest, else all."""
    parts = [_parts(value) for value in values]
    if len(parts) == 1 or any(part.keys() != parts[0].keys() for part in parts):
        return " or ".join(values)
    return ", ".join(_joined_part(key, list(dict.fromkeys(part[key] for part in parts))) for key in parts[0])


def _parts(text: str) -> dict[str, str]:
    """Return the values of a text such as `extents=3, compressed=0%`, by key; a text without a key is its own."""
    return {key: value for key, _, value in (part.partition("=") for part in text.split(", "))}


def _joined_part(key: str, values: Sequence[str]) -> str:
    numbers = [re.fullmatch(r"(\d+)(%?)", value) for value in values]
    if len(values) > 1 and all(numbers):
        ordered = sorted((int(number[1]), number[2]) for number in numbers if number)
        return f"{key}={ordered[0][0]} to {ordered[-1][0]}{ordered[-1][1]}"
    return f"{key}={' or '.join(values)}" if any(values) else key


def _values(jobs: pd.DataFrame, name: str) -> list[str]:
    """Return the values that the jobs recorded, without repetition, sorted."""
    column = f"storage_{name}"
    return sorted({str(value) for value in jobs[column].dropna()} - {""}) if column in jobs else []


def _numbers(jobs: pd.DataFrame, name: str) -> pd.Series:
    column = f"storage_{name}"
    if column not in jobs:
        return pd.Series(math.nan, index=jobs.index)
    numbers = pd.to_numeric(jobs[column], errors="coerce").astype("float64")
    return numbers.where(numbers > 0)


def _largest(values: pd.Series) -> float:
    return float(values.max()) if values.notna().any() else math.nan


def _disks(jobs: pd.DataFrame) -> frozenset[str]:
    if "storage_device" not in jobs:
        return frozenset()
    hosts = jobs["host"] if "host" in jobs else pd.Series("", index=jobs.index)
    pairs = set(zip(hosts.fillna("").map(str), jobs["storage_device"].fillna("").map(str), strict=True))
    return frozenset(
        f"the disk {disk} of {host}" if host else f"the disk {disk}"
        for host, text in pairs
        for disk in devices.disks(devices.parsed(text))
    )


def _volumes(jobs: pd.DataFrame) -> frozenset[str]:
    return frozenset(volume for volume in _values(jobs, "volume") if not volume.startswith(UNKNOWN_FACT))


def _ignored(asked: pd.DataFrame) -> bool:
    return bool(len(asked)) and not asked["direct"].any()


def _ceilings(ceiling: pd.DataFrame) -> dict[tuple[Direction, bool], float]:
    sums = ceiling.groupby(["operation", "direct"], sort=False)[["size_bytes", "duration_s"]].sum()
    rates = sums["size_bytes"] / sums["duration_s"].where(sums["duration_s"] > 0) / 1e9
    return {
        (direction, direct): float(rates[direction, direct])
        for direction in ("write", "read")
        for direct in (True, False)
        if (direction, direct) in rates.index
    }


def _small_files(metadata: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Sum up per measurement what all ranks did, from the first start to the last end; then over the measurements."""
    ended = metadata.assign(end_s=metadata["start_s"] + metadata["duration_s"])
    measured = ended.groupby(["job_id", "when", "ranks", "operation"], sort=False)
    whole = pd.DataFrame({"count": measured["count"].sum(), "s": measured["end_s"].max() - measured["start_s"].min()})
    sums = whole.groupby(["ranks", "operation"], sort=False).sum()
    rates: dict[int, dict[str, float]] = {}
    for (ranks, operation), count, seconds in zip(sums.index, sums["count"], sums["s"], strict=True):
        rates.setdefault(int(ranks), {})[str(operation)] = float(count / seconds) if seconds > 0 else math.nan
    return dict(sorted(rates.items()))
