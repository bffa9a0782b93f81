"""Writes the comparison of one level of checkpoints with two as a table."""

from __future__ import annotations

from analysis.advice.levels import LevelsAdvice
from analysis.tables.table import Cell, Number, Table

MODEL = (
    "of the failures, those that a node-local copy survives come at the rate λ1, and others at λ2. Lost are, to first "
    "order, (n C1 + C2) / W + λ1 (W / 2n + D1 + R) + λ2 (W / 2 + D2 + R): C1 is the lost time of a save on the local "
    "level and C2 that of a copy, D1 and D2 the times from a save's call until it is safe on either level, n the saves "
    "in a period W, of which the last is copied, R the restart. W is at least D2 and n D1, so that nothing waits"
)


def levels_table(advice: LevelsAdvice) -> Table:
    """Return the table of one pair of targets."""
    local, shared, one, two = advice.local.target, advice.shared.target, advice.one, advice.two
    rows: tuple[tuple[Cell, ...], ...] = (
        (f"{shared} alone", advice.shared_label, Number(one.interval_s / 60), "1", Number(100 * one.lost, 3)),
        (
            f"{local}, copied to {shared}",
            advice.local_label,
            Number(two.interval_s / 60),
            f"{two.saves}",
            Number(100 * two.lost, 3),
        ),
    )
    headings = ("levels", "method", "save every [min]", "copy every [saves]", "lost in all [%]")
    assumptions = advice.assumptions
    notes = (
        _in_words(advice),
        MODEL,
        f"assumed: a failure every {assumptions.mtbf_hours:g} h, {advice.local_share:.0%} of them survived by a "
        f"node-local copy (--local-share); a restart costs {assumptions.restart_s:g} s (--restart-s)".replace(
            "%", " %"
        ),
        _cost_of_a_copy(advice),
    )
    title = f"One level or two: {advice.local.study}, {local} before {shared}, {advice.local.scale}"
    return Table("levels", title, headings, rows, notes)


def _cost_of_a_copy(advice: LevelsAdvice) -> str:
    if advice.measured is None:
        return f"assumed: a copy costs the job what the least costly save on {advice.shared.target} costs it"
    drains = advice.measured
    return (
        f"measured: beside a copy steps take {drains.slowdown.estimate:.1%} longer, for {drains.drain.estimate:.3g} s; "
        f"{advice.shared.target} has it {drains.latency.estimate:.3g} s after the call ({drains.copied} copies)"
    ).replace("%", " %")


def _in_words(advice: LevelsAdvice) -> str:
    if not advice.two.lost < advice.one.lost:
        return f"save on {advice.shared.target} alone: a second level would not lose less"
    every = "every one" if advice.two.saves == 1 else f"every {advice.two.saves}th"
    return (
        f"save on {advice.local.target} and copy {every} to {advice.shared.target}: that loses "
        f"{advice.two.lost / advice.one.lost:.2g} times what saves on {advice.shared.target} alone lose"
    )
