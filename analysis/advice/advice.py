"""Derives advice from the measurements: the best strategies in a setting, and how often to checkpoint at what cost.

Best is a set: all strategies that the data does not separate from the one with the smallest median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from analysis.advice.intervals import Loss, daly_interval_s, loss, young_interval_s
from analysis.advice.ranges import POSITIVE, check_range
from analysis.advice.thin import Restore, restart_load, thin
from analysis.measures.differences import Difference, differences, round_medians
from analysis.measures.method import UNKNOWN_FACT, Method
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import UNKNOWN, Interval, exactly
from analysis.measures.trials import NO_TRIALS, Trials

MTBF_HOURS = (1, 2, 4, 8, 24, 72, 168)
"""The mean times between failures of the tables: from a machine that is being commissioned to a week."""

SAME_SIZE = 0.01
"""Files' sizes are counted, not timed: a difference of less than a hundredth decides nothing."""

Stall = Literal["committed", "call"]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the measurements can't know about the job that is to be checkpointed."""

    mtbf_hours: float = 8.0
    """Mean time between failures of the whole job: of all its nodes together."""
    step_time_s: Annotated[float | None, Parameter(name="--step-time")] = None
    """Seconds of one training step, to have the interval in steps as well."""
    restore: Restore = "cold"
    """Which load a restart does: from storage, or on a node that still has the checkpoint in its page cache."""
    restart_s: float = 0.0
    """What a restart costs besides the load: noticing the failure, waiting for nodes, starting."""
    stall: Stall = "committed"
    """What stops the job: the save until it is committed; or only the strategy's call, if sync and commit are done
    while the job computes.
    """

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ResultsError: if a number is out of range.
        """
        check_range("--mtbf-hours", self.mtbf_hours, POSITIVE)
        check_range("--restart-s", self.restart_s, 0)
        if self.step_time_s is not None:
            check_range("--step-time", self.step_time_s, POSITIVE)


USUAL = Assumptions()


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
class Schedule:
    """How often to checkpoint with one method, and what that costs."""

    label: str
    stall_s: Interval
    behind_s: float
    """Seconds from the end of the stall until the checkpoint is safe."""
    load_s: Interval
    load_kind: Operation | None
    """The loads that `load_s` is the median of; None without any."""
    young_s: float
    daly_s: float
    lost: Loss
    lost_range: Interval
    """The whole loss, with what it were at the ends of the intervals of stall and load."""
    lost_by_round: Trials
    """The whole loss at the medians per round, by which schedules are compared within rounds. It has no unit: fractions
    of the machine take the place of durations."""
    daly_s_by_mtbf: tuple[float, ...]
    """Daly's intervals for `MTBF_HOURS`."""
    lost_by_mtbf: tuple[float, ...]
    """The whole losses for `MTBF_HOURS`."""


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
    schedules = sorted(
        (_schedule(method, assumptions) for method in setting.methods),
        key=lambda schedule: (math.isnan(schedule.lost.total), schedule.lost.total),
    )
    readable = {m.label for m in setting.methods if m.fact("other_readers") not in {UNKNOWN_FACT, "none"}}
    picks = [
        _fastest("fastest save", {m.label: m[Operation.SAVE] for m in setting.methods}),
        _fastest("fastest load", {m.label: m.load_trials() for m in setting.methods}),
    ]
    if assumptions.restore == "warm":
        picks.append(_fastest("fastest warm load", {m.label: m[Operation.LOAD_WARM] for m in setting.methods}))
    picks += [
        _smallest(setting.methods),
        _cheapest("least of the machine lost", schedules),
        _cheapest("best open format", [schedule for schedule in schedules if schedule.label in readable]),
    ]
    return Advice(setting, assumptions, tuple(picks), tuple(schedules), tuple(thin(setting, assumptions.restore)))


def _schedule(method: Method, assumptions: Assumptions) -> Schedule:
    saves, calls = method[Operation.SAVE], method.phases.get("call", NO_TRIALS)
    stalls = calls if assumptions.stall == "call" else saves
    load_kind = restart_load(method, assumptions.restore)
    loads = method[load_kind] if load_kind else NO_TRIALS
    stall, load = stalls.median(), loads.median()
    # The checkpoint is safe when the save ends, and the job goes on when its stall ends.
    behind_s = max(0.0, saves.median_s - calls.median_s) if assumptions.stall == "call" else 0.0

    def lost(mtbf_s: float, interval_s: float, stall_s: float, load_s: float) -> Loss:
        # An interval of nothing at all, from a clock that saw nothing, has no optimum.
        if not (stall_s > 0 and interval_s > 0):
            return Loss(math.nan, math.nan)
        return loss(interval_s, stall_s, load_s + assumptions.restart_s, mtbf_s, behind_s=behind_s)

    def daly(mtbf_s: float) -> float:
        return daly_interval_s(stall.estimate, mtbf_s) if stall.estimate > 0 else math.nan

    mtbf_s = assumptions.mtbf_hours * 3600
    best_s = daly(mtbf_s)
    now = lost(mtbf_s, best_s, stall.estimate, load.estimate)
    ends = [lost(mtbf_s, best_s, a, b).total for a, b in ((stall.low, load.low), (stall.high, load.high))]
    load_by_round = round_medians(loads)
    by_round = {
        name: lost(mtbf_s, best_s, stall_s, load_by_round[name]).total
        for name, stall_s in round_medians(stalls).items()
        if name in load_by_round
    }
    others_s = [hours * 3600.0 for hours in MTBF_HOURS]
    return Schedule(
        label=method.label,
        stall_s=stall,
        behind_s=behind_s,
        load_s=load,
        load_kind=load_kind,
        young_s=young_interval_s(stall.estimate, mtbf_s) if stall.estimate > 0 else math.nan,
        daly_s=best_s,
        lost=now,
        lost_range=Interval(now.total, *ends),
        lost_by_round=Trials(tuple(by_round.values()), tuple(by_round)),
        daly_s_by_mtbf=tuple(daly(other_s) for other_s in others_s),
        lost_by_mtbf=tuple(lost(other_s, daly(other_s), stall.estimate, load.estimate).total for other_s in others_s),
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
    known = [schedule for schedule in schedules if not math.isnan(schedule.lost.total)]
    if not known:
        return Pick(question, (), UNKNOWN, "share", "", UNKNOWN)
    first, *others = known
    least = first.lost_range
    tests = differences([(schedule.lost_by_round, first.lost_by_round) for schedule in others])
    best, worse = [first.label], []
    for schedule, difference in zip(others, tests, strict=True):
        more = schedule.lost_range
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
