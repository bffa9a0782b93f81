"""What the measurements advise: the best strategies of each setting, and how often to checkpoint at what cost.

Best is a set: all strategies that the data does not separate from the one with the smallest median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from analysis.advice.intervals import Loss, daly_interval_s, loss, young_interval_s
from analysis.errors import ResultsError
from analysis.measures.caveats import FEWEST_TRIALS
from analysis.measures.differences import FEWEST_ROUNDS, Difference, differences, round_medians
from analysis.measures.statistics import Interval, Timed
from analysis.measures.trials import COLD, UNKNOWN, UNPROVEN, WARM, Measured, Setting, Trials

MTBF_HOURS = (1, 2, 4, 8, 24, 72, 168)
"""The mean times between failures of the tables: from a machine that is being commissioned to a week."""

SAME_SIZE = 0.01
"""Files' sizes are counted, not timed: a difference of less than a hundredth decides nothing."""

Restore = Literal["cold", "warm"]
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
        limits = [("--mtbf-hours", self.mtbf_hours, False), ("--restart-s", self.restart_s, True)]
        if self.step_time_s is not None:
            limits.append(("--step-time", self.step_time_s, False))
        for name, value, zero_is_fine in limits:
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_is_fine):
                raise ResultsError(f"{name} {value:g}: expected {'zero or ' if zero_is_fine else ''}a positive number")


USUAL = Assumptions()


@dataclass(frozen=True, slots=True)
class Pick:
    """The answer to one question about a setting."""

    question: str
    best: tuple[str, ...]
    """Labels, the smallest median first; empty where nothing can be said."""
    value: Interval
    """The first one's: seconds, bytes, or a share of the machine."""
    unit: Literal["s", "bytes", "share"]
    next_best: str
    """The best of the others; empty where there is none."""
    next_ratio: Interval
    """How many times as long, or large, as the first one's it is."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to checkpoint with one method, and what that costs."""

    label: str
    stall_s: Interval
    behind_s: float
    """Seconds from the end of the stall until the checkpoint is safe."""
    load_s: Interval
    load_kind: str
    young_s: float
    daly_s: float
    lost: Loss
    lost_range: Interval
    """The whole loss, with what it were at the ends of the intervals of stall and load."""
    lost_by_round: Timed
    """The whole loss at the medians of each round, by which schedules are compared within rounds; it has no unit."""
    daly_s_by_mtbf: tuple[float, ...]
    """One for each of `MTBF_HOURS`, as the next."""
    lost_by_mtbf: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do in one setting, and how sure that is."""

    setting: Setting
    assumptions: Assumptions
    picks: tuple[Pick, ...]
    schedules: tuple[Schedule, ...]
    """The least loss first; those with unknown loss last."""
    thin: tuple[str, ...]
    """Where the data is too thin, in words."""


def advise(setting: Setting, assumptions: Assumptions) -> Advice:
    """The advice for one setting.

    Raises:
        ResultsError: if an assumption makes no sense.
    """
    assumptions.check()
    schedules = sorted(
        (_schedule(method, assumptions) for method in setting.methods),
        key=lambda each: (math.isnan(each.lost.total), each.lost.total),
    )
    readable = {m.label for m in setting.methods if m.fact("other_readers") not in {UNKNOWN, "none"}}
    warm = assumptions.restore == WARM
    picks = (
        _fastest("fastest save", {m.label: m.save for m in setting.methods}),
        _fastest("fastest load", {m.label: restart_load(m, "cold")[1] for m in setting.methods}),
        *(
            [_fastest("fastest warm load", {m.label: m.loads.get(WARM, _NONE) for m in setting.methods})]
            if warm
            else []
        ),
        _smallest(setting.methods),
        _cheapest("least of the machine lost", schedules),
        _cheapest("best open format", [each for each in schedules if each.label in readable]),
    )
    return Advice(setting, assumptions, picks, tuple(schedules), tuple(_thin(setting, assumptions)))


_NONE = Trials((), (), ())
_UNKNOWN = Interval(math.nan, math.nan, math.nan)


def restart_load(method: Measured, restore: Restore) -> tuple[str, Trials]:
    """The loads that a restart does, and their kind: of the kind asked for, or the nearest that was measured."""
    if restore == WARM and WARM in method.loads:
        return WARM, method.loads[WARM]
    return method.cold_load()


def _schedule(method: Measured, assumptions: Assumptions) -> Schedule:
    whole = method.save.median()
    calls = method.phases.get("call", _NONE)
    call, stalls = calls.median(), calls if assumptions.stall == "call" else method.save
    stall = stalls.median()
    behind_s = max(0.0, whole.estimate - call.estimate) if assumptions.stall == "call" else 0.0
    kind, loads = restart_load(method, assumptions.restore)
    load = loads.median()

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
    stall_by_round, load_by_round = round_medians(stalls.timed()), round_medians(loads.timed())
    by_round = {
        name: lost(mtbf_s, best_s, stall_s, load_by_round[name]).total
        for name, stall_s in stall_by_round.items()
        if name in load_by_round
    }
    several = [hours * 3600.0 for hours in MTBF_HOURS]
    return Schedule(
        label=method.label,
        stall_s=stall,
        behind_s=behind_s,
        load_s=load,
        load_kind=kind,
        young_s=young_interval_s(stall.estimate, mtbf_s) if stall.estimate > 0 else math.nan,
        daly_s=best_s,
        lost=now,
        lost_range=Interval(now.total, *ends),
        lost_by_round=Timed(tuple(by_round.values()), tuple(by_round)),
        daly_s_by_mtbf=tuple(daly(each) for each in several),
        lost_by_mtbf=tuple(lost(each, daly(each), stall.estimate, load.estimate).total for each in several),
    )


def _fastest(question: str, measured: dict[str, Trials]) -> Pick:
    """The methods that no other is measurably faster than."""
    medians = {label: trials.median() for label, trials in measured.items() if len(trials)}
    order = sorted(medians, key=lambda label: (medians[label].estimate, label))
    if not order:
        return Pick(question, (), _UNKNOWN, "s", "", _UNKNOWN)
    first, *others = order
    timed = {label: measured[label].timed() for label in order}
    found = dict(zip(others, differences([(timed[label], timed[first]) for label in others]), strict=True))
    best = [first] + [label for label in others if not _apart(timed[label], timed[first], found[label])]
    slower = [label for label in others if label not in best]
    return Pick(
        question, tuple(best), medians[first], "s", *((slower[0], found[slower[0]].ratio) if slower else ("", _UNKNOWN))
    )


def _apart(slower: Timed, faster: Timed, difference: Difference) -> bool:
    """Whether the data shows that the first takes longer: the ratio's interval lies above 1, and the test agrees.

    Where there are too few rounds for that, no trial of the one may be as fast as one of the other.
    """
    if not difference.test.enough:
        return not math.isnan(difference.ratio.low) and min(slower.durations) > max(faster.durations)
    return difference.significant and difference.ratio.estimate > 1


def _smallest(methods: Sequence[Measured]) -> Pick:
    sizes = {method.label: method.size_bytes for method in methods if method.size_bytes > 0}
    order = sorted(sizes, key=lambda label: (sizes[label], label))
    if not order:
        return Pick("smallest", (), _UNKNOWN, "bytes", "", _UNKNOWN)
    least = sizes[order[0]]
    best = [label for label in order if sizes[label] <= least * (1 + SAME_SIZE)]
    others = order[len(best) :]
    ratios = [Interval(ratio, ratio, ratio) for ratio in (sizes[label] / least for label in others[:1])]
    value = Interval(least, least, least)
    return Pick("smallest", tuple(best), value, "bytes", *((others[0], ratios[0]) if others else ("", _UNKNOWN)))


def _cheapest(question: str, schedules: Sequence[Schedule]) -> Pick:
    """The methods that lose the least: those that none loses measurably less than, within rounds.

    Where there are too few rounds, those whose range reaches into the best one's are not separated from it.
    """
    known = [each for each in schedules if not math.isnan(each.lost.total)]
    if not known:
        return Pick(question, (), _UNKNOWN, "share", "", _UNKNOWN)
    first, *others = known
    least = first.lost_range
    tests = differences([(each.lost_by_round, first.lost_by_round) for each in others])
    best, worse = [first.label], []
    for each, difference in zip(others, tests, strict=True):
        more = each.lost_range
        ratio = Interval(more.estimate / least.estimate, more.low / least.high, more.high / least.low)
        if difference.test.enough:
            apart, ratio = difference.significant and difference.ratio.estimate > 1, difference.ratio
        else:
            apart = more.low > least.high
        if apart:
            worse.append((each.label, ratio))
        else:
            best.append(each.label)
    return Pick(question, tuple(best), least, "share", *(worse[0] if worse else ("", _UNKNOWN)))


def _thin(setting: Setting, assumptions: Assumptions) -> list[str]:
    """Where the data is too thin for what is said about it."""
    methods = setting.methods
    loads = {method.label: restart_load(method, assumptions.restore) for method in methods}
    few = [m.label for m in methods if 0 < min(len(m.save), len(loads[m.label][1])) < FEWEST_TRIALS]
    single = [m.label for m in methods if len(set(m.save.jobs)) == 1]
    several = [m.label for m in methods if 1 < len(set(m.save.jobs)) < FEWEST_ROUNDS]
    cases = [
        ("without a valid save", [m.label for m in methods if not len(m.save)], "no advice about them"),
        ("without a valid load", [m.label for m in methods if len(m.save) and not len(loads[m.label][1])],
         "what a restart with them costs is unknown"),
        (f"fewer than {FEWEST_TRIALS} valid trials", few, "their intervals are wide, or missing: add `repeats`"),
        ("a single job", single, "how jobs differ is unknown, so their intervals are too narrow: add `rounds`"),
        ("two rounds", several,
         "too few for a test: called different only where no trials overlap; add `rounds`, to three or more"),
        ("loads not proven cold", [label for label, (kind, _) in loads.items() if kind == UNPROVEN],
         "a restart may take longer than they did"),
        ("no cold loads", [label for label, (kind, _) in loads.items() if kind == WARM and assumptions.restore == COLD],
         "warm ones stand in, and a restart will take longer: set `cold = true`"),
        ("no warm loads", [label for label, (kind, _) in loads.items() if kind in {COLD, UNPROVEN} and
                           assumptions.restore == WARM], "cold ones stand in: set `warm_load = true`"),
        ("older logs, which don't say who else reads the format",
         [m.label for m in methods if m.fact("other_readers") == UNKNOWN], "not considered as open formats"),
    ]  # fmt: skip
    return [f"{what}: {_listed(labels, len(methods))}; {so}" for what, labels, so in cases if labels]


def _listed(labels: Sequence[str], count: int) -> str:
    return "all strategies" if len(labels) == count > 1 else ", ".join(labels)
