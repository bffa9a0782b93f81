"""Finds what makes the numbers of a target less reliable because of what it lies on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.measures.caveats import Caveat, Kind
from analysis.measures.storage import UNKNOWN_FACT, Storage
from jobs.timing_log import devices

_NEARLY_FULL = 0.90


def about_storage(target: str, storage: Storage, of_study: Mapping[str, Storage]) -> Iterator[Caveat]:
    """Check one target.

    Args:
        target: its name.
        storage: what it lies on.
        of_study: target -> storage, of all targets of the study.
    """
    where = f"target {target}"
    if storage.ignored_direct:
        directions = " and ".join(f"{direction}s" for direction in storage.ignored_direct)
        yield Caveat(Kind.NOT_DIRECT, where, details={"directions": directions})
    shared = devices.in_common({name: its.below for name, its in of_study.items()})
    for what, names in shared.items():
        others = [name for name in names if _without_axes(name) != _without_axes(target)]
        if target in names and others:
            yield Caveat(Kind.SHARED_STORAGE, where, details={"others": ", ".join(others), "what": what})
    layout = storage.fact("layout")
    if layout.startswith(UNKNOWN_FACT) and not storage.devices:
        yield Caveat(Kind.UNKNOWN_LAYOUT, where, details={"why": reason(layout)})
    if storage.used_fraction > _NEARLY_FULL:
        yield Caveat(Kind.NEARLY_FULL, where, storage.used_fraction)


def _without_axes(target: str) -> str:
    return target.partition("+")[0]


def reason(fact: str) -> str:
    """Return why a fact is unknown, without the brackets around it."""
    return fact.removeprefix(f"{UNKNOWN_FACT} (").removesuffix(")") if fact.startswith(UNKNOWN_FACT) else fact
