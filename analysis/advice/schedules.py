"""Derives how often to checkpoint with one method, and what that costs, from what its saves cost the job."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from analysis.advice.assumptions import MTBF_HOURS, Assumptions
from analysis.advice.intervals import Loss, best_interval_s, daly_interval_s, loss, young_interval_s
from analysis.advice.thin import restart_load
from analysis.measures.differences import round_medians
from analysis.measures.loop import LoopSave, Part
from analysis.measures.lost import LoopCost, unhurried_saves
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.statistics import UNKNOWN, Interval, exactly
from analysis.measures.trials import NO_TRIALS, Trials


@dataclass(frozen=True, slots=True)
class Cost:
    """What saves cost the job, and when they are safe; medians with their intervals, and medians by round."""

    lost_s: Interval
    latency_s: Interval
    lost_s_by_round: Mapping[str, float]
    latency_s_by_round: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to checkpoint with one method, and what that costs."""

    label: str
    lost_s: Interval
    """What a save costs the job: the lost time that was measured in a loop, or a stall."""
    latency_s: Interval
    """From the call of a save until a restart can use it."""
    load_s: Interval
    """Nothing where a loop was measured, which loads nothing."""
    load_kind: Operation | None
    """The loads that `load_s` is the median of; None without any."""
    young_s: float
    daly_s: float
    step_s: float
    """How long a step of the loop took without checkpoints; NaN where no loop was measured."""
    interval_s: Interval
    """The advised seconds of computing between two saves: Daly's, or so many that no save waits for the one before.
    Its ends are what the ends of the intervals of lost time and latency advise.
    """
    exposure_s: Interval
    """The most work that a failure can cost at that interval: until the next call, and on to the commit after it."""
    loss: Loss
    loss_range: Interval
    """The whole loss, with what it were at the ends of the intervals of lost time, latency and load."""
    loss_by_round: Trials
    """The whole loss at the medians per round, by which schedules are compared within rounds. It has no unit: fractions
    of the machine take the place of durations."""
    interval_s_by_mtbf: tuple[float, ...]
    """The advised intervals for `MTBF_HOURS`."""
    loss_by_mtbf: tuple[float, ...]
    """The whole losses for `MTBF_HOURS`."""

    @property
    def waits_for_latency(self) -> bool:
        """Whether saves cost so little that the latency decides how often they can come."""
        return self.interval_s.estimate > self.daly_s


def cost_of(method: Method, assumptions: Assumptions) -> Cost:
    """Return what a save of a method costs the job, and when it is safe: measured in its loop, or assumed."""
    if method.loop is not None:
        return _in_loop(method.loop)
    saves, calls = method[Operation.SAVE], method.phases.get("call", NO_TRIALS)
    lost = calls if assumptions.stall == "call" else saves
    latency = saves if len(lost) else NO_TRIALS  # what wasn't measured isn't replaced by something else
    return Cost(lost.median(), latency.median(), round_medians(lost), round_medians(latency))


def _in_loop(loop: LoopCost) -> Cost:
    """Return the lost time and the latency of saves without what they waited for others; unknown where one was invalid.

    A loop doesn't get faster by a save: less than nothing lost is nothing.
    """
    if loop.invalid:
        return Cost(UNKNOWN, UNKNOWN, {}, {})
    alone = [save for saves in unhurried_saves(loop.jobs) for save in saves]

    def by_round(seconds_of: Callable[[LoopSave], float]) -> dict[str, float]:
        rounds = sorted({save.round for save in alone})
        return {name: median(seconds_of(save) for save in alone if save.round == name) for name in rounds}

    lost_s = loop.unhurried.lost
    return Cost(
        Interval(*(max(end, 0.0) for end in (lost_s.estimate, lost_s.low, lost_s.high))),  # NaN stays
        loop.unhurried.latency,
        by_round(lambda save: max(save.lost_s - save.parts[Part.WAIT], 0.0)),
        by_round(lambda save: save.latency_s - save.parts[Part.WAIT]),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """What the model needs, in s."""

    lost_s: float
    latency_s: float
    load_s: float

    def interval_s(self, mtbf_s: float) -> float:
        """Return the best interval; NaN where a clock saw nothing at all."""
        return best_interval_s(self.lost_s, self.latency_s, mtbf_s) or math.nan

    def loss(self, interval_s: float, restart_s: float, mtbf_s: float) -> Loss:
        """Return the loss at an interval."""
        return loss(interval_s, self.lost_s, self.load_s + restart_s, mtbf_s, latency_s=self.latency_s)


def schedule_of(method: Method, assumptions: Assumptions) -> Schedule:
    """Find the interval of a method, and what checkpoints and failures cost at it."""
    cost = cost_of(method, assumptions)
    load_kind = restart_load(method, assumptions.restore)
    loads = method[load_kind] if load_kind else NO_TRIALS
    load_s, load_s_by_round = loads.median(), round_medians(loads)
    if method.loop is not None:
        load_s, load_s_by_round = exactly(0.0), dict.fromkeys(cost.lost_s_by_round, 0.0)
    now, *ends = (_Times(*values) for values in zip(*map(_ends, (cost.lost_s, cost.latency_s, load_s)), strict=True))
    by_round = {
        name: _Times(lost_s, cost.latency_s_by_round[name], load_s_by_round[name])
        for name, lost_s in cost.lost_s_by_round.items()
        if name in load_s_by_round and name in cost.latency_s_by_round
    }
    mtbf_s, restart_s = assumptions.mtbf_hours * 3600, assumptions.restart_s
    best_s = now.interval_s(mtbf_s)
    advised_s = sorted(times.interval_s(mtbf_s) for times in ends)
    losses = [times.loss(best_s, restart_s, mtbf_s) for times in (now, *ends)]
    others_s = [hours * 3600.0 for hours in MTBF_HOURS]
    return Schedule(
        label=method.label,
        lost_s=cost.lost_s,
        latency_s=cost.latency_s,
        load_s=load_s,
        load_kind=load_kind,
        young_s=math.nan if math.isnan(best_s) else young_interval_s(now.lost_s, mtbf_s),
        daly_s=math.nan if math.isnan(best_s) else daly_interval_s(now.lost_s, mtbf_s),
        step_s=math.nan if method.loop is None else method.loop.step_s,
        interval_s=Interval(best_s, *advised_s),
        exposure_s=Interval(*(_exposure_s(times, best_s) for times in (now, *ends))),
        loss=losses[0],
        loss_range=Interval(*(value.total for value in losses)),
        loss_by_round=Trials(
            tuple(times.loss(best_s, restart_s, mtbf_s).total for times in by_round.values()), tuple(by_round)
        ),
        interval_s_by_mtbf=tuple(map(now.interval_s, others_s)),
        loss_by_mtbf=tuple(now.loss(now.interval_s(other_s), restart_s, other_s).total for other_s in others_s),
    )


def _ends(value: Interval) -> tuple[float, float, float]:
    return value.estimate, value.low, value.high


def _exposure_s(times: _Times, interval_s: float) -> float:
    """From a call to the next, and to the commit of that one."""
    return max(interval_s + times.lost_s, times.latency_s) + times.latency_s
