"""Compares saves on shared storage with saves on node-local storage of which every n-th is copied to the shared one.

The model: failures come at random and independently. A node-local copy survives those that come at the rate λ₁ (a
process dies, a job is preempted), and not those at the rate λ₂ (a node is lost). A save costs the job C₁ on the local
level, and is safe there D₁ after its call. A copy to the shared level costs C₂ more, and is safe D₂ after the call. In
a period of W seconds there are n saves, and the last one is copied. A restart takes R. The share of the time that is
lost is, to first order,

    H(W, n) = (n C₁ + C₂) / W + λ₁ (W / 2n + D₁ + R) + λ₂ (W / 2 + D₂ + R)

which is least, where D₁ and D₂ allow it, at

    n = sqrt(λ₁ C₂ / (λ₂ C₁)),   W = sqrt(2 (n C₁ + C₂) / (λ₁ / n + λ₂)):   H = sqrt(2 λ₁ C₁) + sqrt(2 λ₂ C₂) + ...

With one level, C₁ = D₁ = 0 and n = 1, and λ₂ is the rate of all failures.

Source: A. Benoit, A. Cavelan, V. Le Fèvre, Y. Robert, H. Sun, Towards optimal multi-level checkpointing, IEEE
Transactions on Computers 66 (7), 2017, for the sum over levels; the latencies are added here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.advice.assumptions import Assumptions
from analysis.advice.ranges import POSITIVE, check_range
from analysis.advice.schedules import cost_of
from analysis.errors import ResultsError
from analysis.measures.drains import Drains
from analysis.measures.loop_cost import NO_SAVES
from analysis.measures.setting import Setting

_MOST_SAVES = 10_000
"""From one copy to the next."""


@dataclass(frozen=True, slots=True)
class LevelCost:
    """What a save on a level, or a copy to it, costs the job, and when it is safe there, in s."""

    lost_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """How often to save, and the share of the time that saves and failures take: from 0 to 1, by the model above."""

    saves: int
    """From one copy to the next, the copied one included."""
    period_s: float
    """From one copy to the next."""
    lost: float

    @property
    def interval_s(self) -> float:
        """From one save to the next."""
        return self.period_s / self.saves


@dataclass(frozen=True, slots=True)
class LevelsAdvice:
    """Whether to save on two levels."""

    local: Setting
    shared: Setting
    assumptions: Assumptions
    local_share: float
    """The share of the failures that a node-local copy survives."""
    local_label: str
    """The method on the local level."""
    shared_label: str
    """The method on the shared one, if that is the only level."""
    one: Pattern
    two: Pattern
    measured: Drains | None = None
    """The copies by which that method's second level was measured; None where their cost is assumed."""


def one_level(cost: LevelCost, rate: float, restart_s: float = 0.0) -> Pattern:
    """Return how often to save on one level, with failures at a rate per s."""
    return two_levels(LevelCost(0.0, 0.0), cost, (0.0, rate), restart_s, most_saves=1)


def two_levels(
    first: LevelCost,
    second: LevelCost,
    rates: tuple[float, float],
    restart_s: float = 0.0,
    *,
    most_saves: int = _MOST_SAVES,
) -> Pattern:
    """Return how often to save on two levels, so that no save waits for the one before, and no copy for another.

    Args:
        first: the local level.
        second: the shared one.
        rates: of failures per s that the local level survives, and of others, which is positive.
        restart_s: R.
        most_saves: from one copy to the next.
    """
    saves = np.arange(1, most_saves + 1)
    lost_s = saves * first.lost_s + second.lost_s
    periods_s = np.sqrt(2 * lost_s / (rates[0] / saves + rates[1]))
    periods_s = np.maximum.reduce([periods_s, np.full(len(saves), second.latency_s), saves * first.latency_s])
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = (
            lost_s / periods_s
            + rates[0] * (periods_s / saves / 2 + first.latency_s + restart_s)
            + rates[1] * (periods_s / 2 + second.latency_s + restart_s)
        )
    if np.isnan(lost).all():
        return Pattern(1, math.nan, math.nan)
    best = int(np.nanargmin(lost))
    return Pattern(int(saves[best]), float(periods_s[best]), float(lost[best]))


def advise_levels(settings: Sequence[Setting], assumptions: Assumptions, local_share: float) -> list[LevelsAdvice]:
    """Advise on every pair of a node-local and a shared target beside which the same loop was measured.

    What a copy costs is measured where the local target drained to the shared one beside the loop: κ / (1 + κ)
    of its duration. Elsewhere it is taken to cost as much as the save to the shared target that costs the least.

    Raises:
        ResultsError: if an assumption makes no sense, or there is no such pair.
    """
    assumptions.check()
    check_range("--local-share", local_share, POSITIVE, math.nextafter(1, 0))
    advices = [
        advice
        for local in settings
        for shared in settings
        if _are_levels(local, shared)
        for advice in _of_pair(local, shared, assumptions, local_share)
    ]
    if not advices:
        raise ResultsError(
            "--local-share compares one level with two, and these results have no training loop that was measured on "
            "a node-local target and on a shared one: write `node_local = true` below one of the study's targets, and "
            "a table [loop]"
        )
    return advices


def _are_levels(local: Setting, shared: Setting) -> bool:
    same = ("study", "nodes", "tasks_per_node", "state", "loop")
    return (
        local.loop is not None
        and local.node_local is True
        and shared.node_local is False
        and all(getattr(local, name) == getattr(shared, name) for name in same)
    )


def _of_pair(local: Setting, shared: Setting, assumptions: Assumptions, share: float) -> Iterator[LevelsAdvice]:
    on_local, on_shared = (dict(_costs(setting, assumptions)) for setting in (local, shared))
    if not on_local or not on_shared:
        return
    rate = 1 / (3600 * assumptions.mtbf_hours)
    rates = share * rate, (1 - share) * rate
    cheapest = min(on_shared.values(), key=lambda cost: cost.lost_s)
    ones = {label: one_level(cost, rate, assumptions.restart_s) for label, cost in on_shared.items()}
    drains = _drains(local) if local.storage.fact("drain_to") == shared.target else {}
    pairs = {
        label: _with_copy(cost, drains[label]) if label in drains else (cost, cheapest)
        for label, cost in on_local.items()
    }
    twos = {label: two_levels(*pair, rates, assumptions.restart_s) for label, pair in pairs.items()}
    one, two = (min(patterns, key=lambda label: patterns[label].lost) for patterns in (ones, twos))
    yield LevelsAdvice(local, shared, assumptions, share, two, one, ones[one], twos[two], drains.get(two))


def _drains(setting: Setting) -> dict[str, Drains]:
    """Return the copies of the methods whose copies' cost is known: those at the longest interval, where none waits."""
    known = {}
    for method in setting.methods:
        for at in method.loop.at if method.loop else ():
            if not math.isnan(at.drains.slowdown.estimate):
                known[method.label] = at.drains
    return known


def _with_copy(both: LevelCost, drains: Drains) -> tuple[LevelCost, LevelCost]:
    """Split what a save and its copy cost together: the copy takes κ / (1 + κ) of its time from the steps beside it."""
    slowdown = max(0.0, drains.slowdown.estimate)
    copy_s = slowdown / (1 + slowdown) * drains.drain.estimate
    return LevelCost(max(0.0, both.lost_s - copy_s), both.latency_s), LevelCost(copy_s, drains.latency.estimate)


def _costs(setting: Setting, assumptions: Assumptions) -> Iterator[tuple[str, LevelCost]]:
    """What the methods of a setting cost that save, and of which that is known."""
    for method in setting.methods:
        if method.loop is None or method.loop.way == NO_SAVES:
            continue
        cost = cost_of(method, assumptions)
        known = LevelCost(cost.lost_s.estimate, cost.latency_s.estimate)
        if not math.isnan(known.lost_s + known.latency_s):
            yield method.label, known
