"""Puts advice into words: the answer in a few sentences, what it assumes, and its model."""

from __future__ import annotations

import math

from analysis.advice.advice import LEAST_LATENCY, LEAST_LOST, Advice
from analysis.advice.assumptions import Assumptions
from analysis.advice.schedules import Schedule
from analysis.measures.loop import LoopSpec
from analysis.measures.operation import Operation
from analysis.measures.statistics import Interval
from analysis.tables.table import MISSING

HOW_SEPARATED = (
    "several strategies in one row: the data does not separate them. One is called slower only if the 95 % interval of "
    "the ratio within rounds lies above 1 and the tests of the tables agree (corrected p < 0.05); "
    "with too few rounds for that, only if no trial of one is as fast as one of the other"
)

MODEL = (
    "Young: sqrt(2 C M); Daly: his higher-order estimate (2006), for C < 2 M; C is the stall, M the MTBF, and the "
    "interval is time spent computing between two checkpoints. The machine lost is what Daly's expected wall time has "
    "above the time for the work alone, at Daly's interval"
)

MODEL_IN_A_LOOP = (
    "C is the lost time that was measured, D the time from the call of a save to its commit, M the MTBF; the interval "
    "is time spent computing between two saves. It is Daly's for C, for C < 2 M, but no shorter than D - C: only one "
    "save is in flight, and one that comes earlier waits. The machine lost is what Daly's expected wall time, times "
    "exp((D - C) / M), has above the time for the work alone. The exposure is the time from a call to the next, and D: "
    "the most work that a failure can cost"
)

_MOST_IN_A_SENTENCE = 3


def in_words(advice: Advice) -> list[str]:
    """Answer in a few sentences: which strategy, how often, at what cost, and how sure that is."""
    pick = next(pick for pick in advice.picks if pick.question == LEAST_LOST)
    loop = advice.setting.loop
    where = f"On {advice.setting.target}, {_scale(advice)}" + (f", beside {loop}" if loop else "")
    if not pick.best:
        return [f"{where}: {_nothing(loop)}, so there is no advice."]
    first = next(schedule for schedule in advice.schedules if schedule.label == pick.best[0])
    if len(pick.best) == 1:
        sentences = [f"{where}, use {first.label}."]
    else:
        sentences = [f"{where}, use {_some(pick.best)}: the data does not separate them."]
    sentences += _in_a_loop(first, advice.assumptions) if loop else _alone(first, advice.assumptions)
    if pick.next_best:
        sentences.append(f"The next, {pick.next_best}, loses {pick.next_ratio.estimate:.3g} times as much.")
    best = {pick.question: pick.best for pick in advice.picks}
    for question, begins in _QUESTIONS.items():
        if best.get(question):
            sentences.append(f"{begins}: {_some(best[question])}.")
    if "best open format" in best:
        sentences.append(_open_in_words(best["best open format"]))
    return sentences


_QUESTIONS = {
    "fastest save": "Fastest to save",
    "fastest load": "Fastest to load",
    "smallest": "Smallest",
    LEAST_LATENCY: "Soonest committed",
}
"""Further questions, and how their answers begin."""


_NO_SOONER = " (sooner, a save would wait for the one before)"


def _nothing(loop: LoopSpec | None) -> str:
    if loop is None:
        return "no strategy has a valid save and a valid load"
    return "no way of saving has a lost time and valid checkpoints only"


def _in_steps(schedule: Schedule, assumptions: Assumptions) -> str:
    steps = steps_of(schedule, assumptions)
    return "" if steps is None else f", every {steps:,.0f} steps"


def _alone(schedule: Schedule, assumptions: Assumptions) -> list[str]:
    """Describe a schedule where no loop was measured."""
    why = _NO_SOONER if schedule.waits_for_latency else " (Daly)"
    return [
        (
            f"With {schedule.label} a checkpoint stops the job for {_duration(schedule.lost_s.estimate)}, and a "
            f"restart loads for {_duration(schedule.load_s.estimate)} ({cache(schedule.load_kind)})."
        ),
        (
            f"With a failure every {assumptions.mtbf_hours:g} h, checkpoint after every "
            f"{_duration(schedule.interval_s.estimate)} of computing{why}{_in_steps(schedule, assumptions)}"
            f"; checkpoints and failures then take {_share(schedule.loss_range)} of the machine."
        ),
    ]


def _in_a_loop(schedule: Schedule, assumptions: Assumptions) -> list[str]:
    """Describe a schedule from the lost time that was measured in a loop."""
    why = _NO_SOONER if schedule.waits_for_latency else ""
    return [
        (
            f"With {schedule.label} a save costs the loop {_times(schedule.lost_s)}, as measured, and is committed "
            f"{_times(schedule.latency_s)} after its call."
        ),
        (
            f"With a failure every {assumptions.mtbf_hours:g} h, save after every {_times(schedule.interval_s)} of "
            f"computing{_in_steps(schedule, assumptions)}{why}; a failure then costs at most "
            f"{_duration(schedule.exposure_s.estimate)} of work, and checkpoints and failures take "
            f"{_share(schedule.loss_range)} of the machine."
        ),
    ]


def assumed(assumptions: Assumptions, loop: LoopSpec | None = None) -> list[str]:
    """Put the assumptions of the advice into words, for a setting without a loop or with this one."""
    failures = (
        f"failures come at random, one every {assumptions.mtbf_hours:g} h of the whole job, all its nodes together"
    )
    if loop is not None:
        return [
            failures,
            (
                f"a restart costs {assumptions.restart_s:g} s (--restart-s): a study with a loop loads nothing, so add "
                "what a load takes"
            ),
            (
                f"the job's loop and state are the measured ones ({loop}), on as many nodes: beside other steps, or "
                "with another state, a save costs another time, which only a measurement shows"
            ),
            "a save costs as much at every interval, if it does not wait for the one before",
        ]
    stall = (
        "a checkpoint stops the job until it is committed: no strategy is taken to save while the job computes"
        if assumptions.stall == "committed"
        else "a checkpoint stops the job for the strategy's call only, and sync and commit are done while the job "
        "computes: this holds only if your code does so; each failure then costs the time until the commit once more"
    )
    load = {
        "cold": "a restart loads from storage (cold loads)",
        "warm": "a restart loads from the page cache of a node that still holds the checkpoint (warm loads)",
    }[assumptions.restore]
    return [
        failures,
        stall,
        f"{load}, and costs {assumptions.restart_s:g} s besides",
        "the job's state is the measured one, on as many nodes: for others, see `python -m analysis project`",
    ]


def cache(load: Operation | None) -> str:
    """Describe the page cache before a load, with a dash for no load."""
    return load.cache if load else MISSING


def _scale(advice: Advice) -> str:
    nodes, tasks = advice.setting.nodes, advice.setting.tasks_per_node
    return f"{_count(nodes, 'node')} × {_count(tasks, 'task')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def either(labels: tuple[str, ...]) -> str:
    """Name labels of which any will do."""
    """Name labels of which any will do."""
    return " or ".join(labels) if labels else "unknown"


def _some(labels: tuple[str, ...]) -> str:
    """Name as many labels as a sentence can take; the table lists them all."""
    if len(labels) <= _MOST_IN_A_SENTENCE:
        return either(labels)
    return f"{either(labels[:_MOST_IN_A_SENTENCE])} or one of {len(labels) - _MOST_IN_A_SENTENCE} others"


def _open_in_words(labels: tuple[str, ...]) -> str:
    if not labels:
        return "Open formats: none is known among these strategies."
    return f"If other software has to read the checkpoint: {_some(labels)}."


def _duration(seconds: float) -> str:
    """Write a duration with three digits, in the unit that fits."""
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _times(value: Interval) -> str:
    """Write a duration with its interval."""
    if math.isnan(value.low):
        return _duration(value.estimate)
    return f"{_duration(value.estimate)} ({_duration(value.low)} to {_duration(value.high)})"


def _share(value: Interval) -> str:
    if math.isnan(value.estimate):
        return "an unknown share"
    between = "" if math.isnan(value.low) else f" ({value.low:.2%} to {value.high:.2%})"
    return f"{value.estimate:.2%}{between}".replace("%", " %")


def steps_of(schedule: Schedule, assumptions: Assumptions) -> float | None:
    """Convert the interval to whole steps, at least one, and so many that no save waits; None if that is unknown."""
    step_s = schedule.step_s if assumptions.step_time_s is None else assumptions.step_time_s
    steps = schedule.interval_s.estimate / step_s
    if math.isnan(steps):
        return None
    return float(math.ceil(steps) if schedule.waits_for_latency else max(1, round(steps)))
