"""Writes advice as tables."""

from __future__ import annotations

import math

from analysis.advice.advice import Advice
from analysis.advice.assumptions import MTBF_HOURS, Assumptions
from analysis.advice.schedules import Schedule
from analysis.measures.loop import LoopSpec
from analysis.measures.statistics import Interval
from analysis.tables.advice_words import (
    HOW_SEPARATED,
    MODEL,
    MODEL_IN_A_LOOP,
    assumed,
    cache,
    either,
    in_words,
    steps_of,
)
from analysis.tables.table import Cell, Estimate, Number, Table


def advice_tables(advice: Advice) -> list[Table]:
    """Return the tables of what is best, how often to checkpoint, and how the answer depends on the MTBF."""
    schedules = _schedules(advice) if advice.setting.loop is None else _schedules_in_a_loop(advice)
    return [_picks(advice), schedules, *_by_mtbf(advice)]


def model(loop: LoopSpec | None) -> str:
    """Return the model of the advice in words."""
    return MODEL if loop is None else MODEL_IN_A_LOOP


def _picks(advice: Advice) -> Table:
    scale = {"s": 1.0, "bytes": 2.0**-30, "share": 100.0}
    units = {"s": "s", "bytes": "GiB", "share": "% of the machine"}
    rows: list[tuple[Cell, ...]] = [
        (
            pick.question,
            either(pick.best),
            Estimate(_times(scale[pick.unit], pick.value), 3),
            units[pick.unit],
            pick.next_best or "-",
            Estimate(pick.next_ratio),
        )
        for pick in advice.picks
    ]
    headings = ("question", "strategies", "value", "unit", "next best", "times as much")
    assumptions = assumed(advice.assumptions, advice.setting.loop)
    notes = (*in_words(advice), HOW_SEPARATED, *(f"assumed: {line}" for line in assumptions),
             *(f"thin: {line}" for line in advice.thin))  # fmt: skip
    return Table("advice", f"Advice: {advice.setting}", headings, tuple(rows), notes)


def _times(factor: float, value: Interval) -> Interval:
    return Interval(factor * value.estimate, factor * value.low, factor * value.high)


def _schedules(advice: Advice) -> Table:
    step = advice.assumptions.step_time_s
    rows: list[tuple[Cell, ...]] = [
        (
            schedule.label,
            Estimate(schedule.lost_s, 3),
            Estimate(schedule.load_s, 3),
            cache(schedule.load_kind),
            Number(schedule.young_s / 60),
            Number(schedule.daly_s / 60),
            *([_steps(schedule, advice.assumptions)] if step is not None else []),
            *_shares(schedule),
        )
        for schedule in advice.schedules
    ]
    headings = (
        "method", "stall [s]", "load [s]", "kind of load",
        "Young [min]", "Daly [min]",
        *([f"Daly [steps of {step:g} s]"] if step is not None else []),
        *_SHARES,
    )  # fmt: skip
    return Table("schedule", _title(advice), headings, tuple(rows), (MODEL, *_what_stalls(advice)))


def _schedules_in_a_loop(advice: Advice) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            schedule.label,
            Estimate(schedule.lost_s, 3),
            Estimate(schedule.latency_s, 3),
            Number(schedule.daly_s / 60),
            Estimate(_times(1 / 60, schedule.interval_s)),
            _steps(schedule, advice.assumptions),
            "latency" if schedule.waits_for_latency else "lost time",
            Estimate(_times(1 / 60, schedule.exposure_s)),
            *_shares(schedule),
        )
        for schedule in advice.schedules
    ]
    step = advice.assumptions.step_time_s
    headings = (
        "method", "lost per save [s]", "latency [s]",
        "Daly [min]", "interval [min]", "interval [steps]" if step is None else f"interval [steps of {step:g} s]",
        "decided by", "exposure [min]", *_SHARES,
    )  # fmt: skip
    return Table("schedule", _title(advice), headings, tuple(rows), (MODEL_IN_A_LOOP,))


def _title(advice: Advice) -> str:
    return f"How often to checkpoint, with a failure every {advice.assumptions.mtbf_hours:g} h: {advice.setting}"


_SHARES = ("lost to checkpoints [%]", "lost to failures [%]", "lost in all [%]")


def _shares(schedule: Schedule) -> tuple[Cell, ...]:
    return (
        Number(100 * schedule.loss.checkpoints, 3),
        Number(100 * schedule.loss.failures, 3),
        Estimate(_times(100, schedule.loss_range), 3),
    )


def _steps(schedule: Schedule, assumptions: Assumptions) -> Number:
    steps = steps_of(schedule, assumptions)
    return Number(math.nan if steps is None else steps, 0)


def _what_stalls(advice: Advice) -> list[str]:
    if advice.assumptions.stall == "committed":
        return ["stall: the save until it was committed"]
    late = [schedule.label for schedule in advice.schedules if schedule.waits_for_latency]
    return [
        "stall: the strategy's call only (--stall call)",
        *(
            [f"{', '.join(late)}: no sooner than the save before is committed, and so later than Daly's"]
            if late
            else []
        ),
    ]


def _by_mtbf(advice: Advice) -> list[Table]:
    where = advice.setting
    headings = tuple(f"{hours} h" for hours in MTBF_HOURS)
    intervals: list[tuple[Cell, ...]] = [
        (schedule.label, *(Number(value / 60) for value in schedule.interval_s_by_mtbf))
        for schedule in advice.schedules
    ]
    lost: list[tuple[Cell, ...]] = [
        (schedule.label, *(Number(100 * value, 3) for value in schedule.loss_by_mtbf)) for schedule in advice.schedules
    ]
    whose = "Daly" if where.loop is None else "Daly, but no save waits"
    return [
        Table("interval_by_mtbf", f"Minutes of computing between checkpoints ({whose}), by MTBF: {where}",
              ("method", *(f"{heading} [min]" for heading in headings)), tuple(intervals), (model(where.loop),)),
        Table("lost_by_mtbf", f"Share of the machine lost to checkpoints and failures, by MTBF: {where}",
              ("method", *(f"{heading} [%]" for heading in headings)), tuple(lost),
              ("every method checkpoints at Daly's interval" if where.loop is None else
               "every method saves at its interval above",)),
    ]  # fmt: skip
