"""The advised interval against a simulation of a training loop with failures, which knows nothing of the model.

The simulation runs a loop step by step from a restart: saves are called every so many steps, wait for the one before,
hold the loop, slow its steps down until they are committed, and for a while after. Failures are drawn; each goes back
to the newest checkpoint that was committed. The restarts of a long run are independent, so that one run without a
failure, cut off at every drawn failure, is as good as a run through all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.advice.intervals import best_interval_s, loss

STEP_S = 2.0
RESTART_S = 120.0
FAILURES = 200_000
LONGEST_MTBFS = 16
"""No run of the simulation lasts longer: one in nine million would."""

TOLERANCE = 0.01
"""By how much more of the machine the advised interval may lose than the best of a sweep, of that loss."""


@dataclass(frozen=True)
class Way:
    """What a save does to the loop."""

    blocked_s: float
    latency_s: float
    slowed: float = 0.0
    """The share of a step's speed that is lost from the end of the blocked call to the commit."""
    tail_s: float = 0.0
    """By how much the first step after the commit takes longer."""

    @property
    def lost_s(self) -> float:
        """What a save that doesn't wait costs the loop."""
        return self.blocked_s + self.slowed * (self.latency_s - self.blocked_s) + self.tail_s


def run(way: Way, every: int, longest_s: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Run the loop without a failure; returns when checkpoints were committed, and the steps that they hold."""
    now_s, committed_s, pending = 0.0, -math.inf, False
    commits: list[float] = []
    held: list[int] = []
    step = 0
    while now_s < longest_s:
        if step and step % every == 0:
            now_s = max(now_s, committed_s)  # one save in flight
            commits.append(now_s + way.latency_s)
            held.append(step)
            committed_s, pending = commits[-1], True
            now_s += way.blocked_s
        slow_s = max(0.0, committed_s - now_s) if way.slowed else 0.0
        if STEP_S <= slow_s * (1 - way.slowed):
            now_s += STEP_S / (1 - way.slowed)
        else:
            now_s += STEP_S + slow_s * way.slowed
        if pending and now_s >= committed_s:
            now_s, pending = now_s + way.tail_s, False
        step += 1
    return np.array(commits), np.array(held)


def lost_share(way: Way, every: int, mtbf_s: float) -> float:
    """The share of the time that isn't progress, when failures are drawn; the same ones for every interval."""
    failures_s = np.random.default_rng(20061).exponential(mtbf_s, FAILURES)
    commits_s, held = run(way, every, LONGEST_MTBFS * mtbf_s)
    steps = np.concatenate([[0], held])[np.searchsorted(RESTART_S + commits_s, failures_s, side="right")]
    return 1 - float(steps.sum()) * STEP_S / float(failures_s.sum())


WAYS = {
    "sync": (Way(blocked_s=60, latency_s=60), 4 * 3600, False),
    "sync, slow against the MTBF": (Way(blocked_s=300, latency_s=300), 3600, False),
    "asynchronous": (Way(blocked_s=2, latency_s=90, slowed=0.25, tail_s=4), 4 * 3600, False),
    "asynchronous, a long latency": (Way(blocked_s=1, latency_s=300, slowed=0.05), 2 * 3600, False),
    "so cheap that the latency bounds it": (Way(blocked_s=0.5, latency_s=300, slowed=0.005), 3600, True),
    "at no cost at all": (Way(blocked_s=0, latency_s=120), 3600, True),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_advised_interval_loses_hardly_more_than_the_best_of_a_sweep(name: str) -> None:
    """Whether saves hold the loop or not, and also where they can't come as often as they cost would have it."""
    way, mtbf_s, is_bound = WAYS[name]
    advised_s = best_interval_s(way.lost_s, way.latency_s, mtbf_s)
    every = math.ceil(advised_s / STEP_S)

    sweep = {max(1, round(every * 1.2**power)): 0.0 for power in range(-9, 10)}
    sweep = {steps: lost_share(way, steps, mtbf_s) for steps in sweep}
    advised = lost_share(way, every, mtbf_s)

    assert (advised_s + way.lost_s == pytest.approx(way.latency_s)) is is_bound
    assert advised <= (1 + TOLERANCE) * min(sweep.values())
    assert max(sweep.values()) > 1.1 * advised  # the sweep is wide enough to matter


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", WAYS)
def test_the_loss_is_what_the_simulation_loses(name: str, factor: float) -> None:
    """At the advised interval and off it, also where every save waits for the one before."""
    way, mtbf_s, _ = WAYS[name]
    every = math.ceil(factor * best_interval_s(way.lost_s, way.latency_s, mtbf_s) / STEP_S)

    model = loss(every * STEP_S, way.lost_s, RESTART_S, mtbf_s, latency_s=way.latency_s)

    assert model.total == pytest.approx(lost_share(way, every, mtbf_s), rel=0.02)
