"""Derives advice from the measurements: the best strategies in a setting, and how often to checkpoint at what cost.

Best is a set: all strategies that the data does not separate from the one with the smallest median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.advice.assumptions import Assumptions
from analysis.advice.schedules import Schedule, schedule_of
from analysis.advice.thin import thin_alone, thin_in_a_loop
from analysis.measures.differences import Difference, differences
from analysis.measures.loop import Part
from analysis.measures.loop_cost import NO_SAVES
from analysis.measures.lost import LoopCost, unhurried_saves
from analysis.measures.method import UNKNOWN_FACT, Method
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import UNKNOWN, Interval, exactly
from analysis.measures.trials import Trials

LEAST_LOST, LEAST_LATENCY = "least of the machine lost", "shortest commit latency"
"""Questions that callers look up."""

SAME_SIZE = 0.01
"""Files' sizes are counted, not timed: a difference of less than a hundredth decides nothing."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The answer to one question about a setting."""

    question: str
    best: tuple[str, ...]
    """Labels, the smallest median first; empty where nothing is known."""
    value: Interval
    """The value of the first: seconds, bytes, or a share of the machine."""
    unit: Literal["s", "bytes", "share"]
    next_best: str
    """The label of the best other method; empty where there is none."""
    next_ratio: Interval
    """The value of `next_best` over that of the first."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do in one setting, and how sure that is."""

    setting: Setting
    assumptions: Assumptions
    picks: tuple[Pick, ...]
    schedules: tuple[Schedule, ...]
    """Sorted by loss, the least first; schedules of unknown loss last."""
    thin: tuple[str, ...]
    """The parts of the advice for which the data is too thin, in words."""


def advise(setting: Setting, assumptions: Assumptions) -> Advice:
    """Advise on one setting.

    Raises:
        ResultsError: if an assumption makes no sense.
    """
    assumptions.check()
    methods = [method for method in setting.methods if method.loop is None or method.loop.way != NO_SAVES]
    schedules = sorted(
        (schedule_of(method, assumptions) for method in methods),
        key=lambda schedule: (math.isnan(schedule.loss.total), schedule.loss.total),
    )
    readable = {m.label for m in methods if m.fact("other_readers") not in {UNKNOWN_FACT, "none"}}
    picks = (
        *(_of_loops(methods) if setting.loop else _of_operations(methods, assumptions)),
        _cheapest(LEAST_LOST, schedules),
        _cheapest("best open format", [schedule for schedule in schedules if schedule.label in readable]),
    )
    thin = thin_in_a_loop(setting) if setting.loop else thin_alone(setting, assumptions.restore)
    return Advice(setting, assumptions, picks, tuple(schedules), tuple(thin))


def _of_operations(methods: Sequence[Method], assumptions: Assumptions) -> list[Pick]:
    """Answer the questions about saves and loads without a loop."""
    picks = [
        _fastest("fastest save", {m.label: m[Operation.SAVE] for m in methods}),
        _fastest("fastest load", {m.label: m.load_trials() for m in methods}),
    ]
    if assumptions.restore == "warm":
        picks.append(_fastest("fastest warm load", {m.label: m[Operation.LOAD_WARM] for m in methods}))
    return [*picks, _smallest(methods)]


def _of_loops(methods: Sequence[Method]) -> list[Pick]:
    """Answer the questions about saves in a loop, but for how much of the machine they lose."""
    return [_fastest(LEAST_LATENCY, {m.label: _latencies(m.loop) for m in methods if m.loop and not m.loop.invalid})]


def _latencies(loop: LoopCost) -> Trials:
    saves = [save for of_job in unhurried_saves(loop.jobs) for save in of_job]
    return Trials(
        tuple(save.latency_s - save.parts[Part.WAIT] for save in saves),
        tuple(save.job_id for save in saves),
        tuple(save.round for save in saves),
    )


def _fastest(question: str, measured: dict[str, Trials]) -> Pick:
    """Find the methods that no other is measurably faster than."""
    medians = {label: trials.median() for label, trials in measured.items() if len(trials)}
    order = sorted(medians, key=lambda label: (medians[label].estimate, label))
    if not order:
        return Pick(question, (), UNKNOWN, "s", "", UNKNOWN)
    first, *others = order
    tests = differences([(measured[label], measured[first]) for label in others])
    best, slower = [first], []
    for label, test in zip(others, tests, strict=True):
        if _takes_longer(measured[label], measured[first], test):
            slower.append((label, test.ratio))
        else:
            best.append(label)
    return Pick(question, tuple(best), medians[first], "s", *(slower[0] if slower else ("", UNKNOWN)))


def _takes_longer(slower: Trials, faster: Trials, difference: Difference) -> bool:
    """Return whether the data shows that the first takes longer: the interval is above 1, and the test agrees.

    Where there are too few rounds for that, no trial of the one may be as fast as one of the other.
    """
    if not difference.test.enough:
        return not math.isnan(difference.ratio.low) and min(slower.durations_s) > max(faster.durations_s)
    return difference.significant and difference.ratio.estimate > 1


def _smallest(methods: Sequence[Method]) -> Pick:
    sizes = {method.label: method.files.size_bytes for method in methods if method.files.size_bytes > 0}
    order = sorted(sizes, key=lambda label: (sizes[label], label))
    if not order:
        return Pick("smallest", (), UNKNOWN, "bytes", "", UNKNOWN)
    least = sizes[order[0]]
    best = [label for label in order if sizes[label] <= least * (1 + SAME_SIZE)]
    larger = order[len(best) :]
    next_ratio = exactly(sizes[larger[0]] / least) if larger else UNKNOWN
    return Pick("smallest", tuple(best), exactly(least), "bytes", larger[0] if larger else "", next_ratio)


def _cheapest(question: str, schedules: Sequence[Schedule]) -> Pick:
    """Find the methods that lose the least: no other loses measurably less within rounds.

    With too few rounds for a test, a method whose range overlaps that of the best is not separated from it.
    """
    known = [schedule for schedule in schedules if not math.isnan(schedule.loss.total)]
    if not known:
        return Pick(question, (), UNKNOWN, "share", "", UNKNOWN)
    first, *others = known
    least = first.loss_range
    tests = differences([(schedule.loss_by_round, first.loss_by_round) for schedule in others])
    best, worse = [first.label], []
    for schedule, difference in zip(others, tests, strict=True):
        more = schedule.loss_range
        if difference.test.enough:
            loses_more, ratio = difference.significant and difference.ratio.estimate > 1, difference.ratio
        else:
            loses_more = more.low > least.high
            ratio = Interval(more.estimate / least.estimate, more.low / least.high, more.high / least.low)
        if loses_more:
            worse.append((schedule.label, ratio))
        else:
            best.append(schedule.label)
    return Pick(question, tuple(best), least, "share", *(worse[0] if worse else ("", UNKNOWN)))
