"""Makes the table that sets targets with a second level beside those with one: when checkpoints are safe, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from analysis.measures.loop_cost import NO_SAVES
from analysis.measures.lost import AtInterval
from analysis.measures.setting import Setting
from analysis.tables.lost import HOW_JUDGED, HOW_LOST, judged, loop_methods
from analysis.tables.table import Cell, Change, Estimate, Marked, Number, Table
from analysis.tables.targets import comparable

_WHAT_LEVELS = (
    "latency: from the call to the commit on the target; second level: from the call until the target to which it "
    "drains has the checkpoint; drain: from the one to the other. Slower beside copies: the mean duration of steps "
    "between the two commits, without what calls blocked and without steps during which a save was under way, over the "
    "median step without checkpoints, minus 1"
)


def drains_tables(settings: Sequence[Setting]) -> list[Table]:
    """Return one table per study and scale in which a target drains to another.

    Args:
        settings: of any studies.
    """
    loops = [setting for setting in settings if setting.loop]
    groups: list[tuple[str, list[Setting], list[str]]] = list(comparable(loops))
    compared = {id(setting) for _, together, _ in groups for setting in together}
    groups += [(setting.name, [setting], []) for setting in loops if id(setting) not in compared]
    return [_table(*group) for group in groups if any(_has_drains(setting) for setting in group[1])]


def _has_drains(setting: Setting) -> bool:
    return any(at.drains.copied or at.drains.failed for _, cost in loop_methods(setting) for at in cost.at)


def _table(title: str, settings: Sequence[Setting], left_out: Sequence[str]) -> Table:
    footnotes: list[str] = []
    rows = [row for setting in settings for row in _rows(setting, footnotes)]
    headings = (
        "target", "method", "every [steps]", "lost per save [s]", "lost share", "latency [s]", "second level [s]",
        "drain [s]", "slower beside copies", "copies", "not copied",
    )  # fmt: skip
    notes = (HOW_LOST, HOW_JUDGED, _WHAT_LEVELS, *left_out)
    return Table("drains", f"One level and two: {title}", headings, tuple(rows), notes, tuple(footnotes))


def _rows(setting: Setting, footnotes: list[str]) -> Iterator[tuple[Cell, ...]]:
    for method, cost in loop_methods(setting):
        for at in cost.at if cost.way != NO_SAVES else ():
            first = len(footnotes) + 1
            footnotes += [f"not copied: {count} save(s): {reason}" for reason, count in at.drains.failed.items()]
            second = setting.storage.fact("drain_to")
            words = setting.target + (f", copied to {second}" if second else "")
            target = Marked(words, tuple(range(first, len(footnotes) + 1)))
            yield target, method.label, Number(at.every, 0), *_cells(at)


def _cells(at: AtInterval) -> tuple[Cell, ...]:
    drains = at.drains
    has_second = bool(drains.copied or drains.failed)
    return (
        judged(at.lost),
        Change(at.share, "", math.nan),
        Estimate(at.latency),
        Estimate(drains.latency),
        Estimate(drains.drain),
        Change(drains.slowdown, "", math.nan),
        Number(drains.copied if has_second else math.nan, 0),
        Number(sum(drains.failed.values()) if has_second else math.nan, 0),
    )
