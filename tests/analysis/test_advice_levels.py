"""Whether two levels of checkpoints lose less than one: the model against a simulation, and the advice from loops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import load_results
from analysis.__main__ import advise_
from analysis.advice.assumptions import Assumptions
from analysis.advice.levels import LevelCost, LevelsAdvice, Pattern, advise_levels, one_level, two_levels
from analysis.errors import ResultsError
from analysis.measures.setting import settings
from jobs.timing_log import TimingLog
from support.loops import Costs, LoopSimulation

SPEC = {"every": [80], "saves": 2, "blocks": 3}

COSTS = st.builds(LevelCost, st.floats(0.1, 100), st.floats(0.1, 1000))
RATES = st.floats(1e-7, 1e-4)


@given(first=COSTS, second=COSTS, rates=st.tuples(RATES, RATES))
def test_no_other_pattern_loses_less(first: LevelCost, second: LevelCost, rates: tuple[float, float]) -> None:
    """Neither more nor fewer saves in a period, nor another period, unless something would wait."""
    best = two_levels(first, second, rates)
    assert best.period_s >= second.latency_s * (1 - 1e-9)
    assert best.interval_s >= first.latency_s * (1 - 1e-9)
    for saves in {max(1, best.saves - 1), best.saves, best.saves + 1}:
        for factor in (0.9, 1.0, 1.1):
            period_s = best.period_s * factor
            if period_s >= max(second.latency_s, saves * first.latency_s):
                assert lost(first, second, rates, saves, period_s) >= best.lost * (1 - 1e-9)


def lost(first: LevelCost, second: LevelCost, rates: tuple[float, float], saves: int, period_s: float) -> float:
    """The model, in other words."""
    return (
        saves * first.lost_s / period_s + second.lost_s / period_s
        + rates[0] * (0.5 * period_s / saves + first.latency_s)
        + rates[1] * (0.5 * period_s + second.latency_s)
    )  # fmt: skip


def test_the_sum_over_levels() -> None:
    """Where nothing has to wait, the least loss is Benoit's sum of square roots."""
    first, second, rates = LevelCost(2.0, 0.0), LevelCost(200.0, 0.0), (1e-6, 1e-6)
    best = two_levels(first, second, rates)
    assert best.saves == 10
    assert best.lost == pytest.approx(math.sqrt(2 * rates[0] * 2) + math.sqrt(2 * rates[1] * 200))


def test_one_level_is_youngs() -> None:
    """And loses the latency at each failure, too."""
    alone = one_level(LevelCost(8.0, 30.0), 1e-4)
    assert alone.period_s == pytest.approx(math.sqrt(2 * 8 / 1e-4))
    assert alone.lost == pytest.approx(math.sqrt(2 * 8 * 1e-4) + 30e-4)
    assert one_level(LevelCost(8.0, 30.0), 1e-4, 10.0).lost == pytest.approx(alone.lost + 10e-4)


@dataclass
class Job:
    """A job that computes, saves, fails and restarts, at random."""

    first: LevelCost
    second: LevelCost
    rates: tuple[float, float]
    restart_s: float
    pattern: Pattern
    chance: random.Random

    def lost(self, failures: int) -> float:
        """The share of the time that is lost, over so many failures."""
        now = done = local = shared = 0.0
        copying: tuple[float, float] | None = None  # the work in it, and when it is safe
        saves, segment_s = 0, self.pattern.interval_s
        fails_at = self._next(now)
        while failures:
            called = now + segment_s
            cost = self.first.lost_s + (self.second.lost_s if saves + 1 == self.pattern.saves else 0.0)
            if fails_at < called + cost:
                if copying and copying[1] <= fails_at:
                    shared, copying = copying[0], None
                if self.chance.random() < self.rates[1] / sum(self.rates):
                    local, copying = shared, None
                now, done, saves = fails_at + self.restart_s, local, 0
                fails_at, failures = self._next(now), failures - 1
                continue
            now, done, saves = called + cost, done + segment_s, saves + 1
            local = done
            if copying and copying[1] <= now:
                shared, copying = copying[0], None
            if saves == self.pattern.saves:
                copying, saves = (done, called + self.second.latency_s), 0
        return 1 - done / now

    def _next(self, now: float) -> float:
        return now + self.chance.expovariate(sum(self.rates))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("second", [LevelCost(20.0, 60.0), LevelCost(5.0, 400.0)])
def test_the_model_is_what_a_job_loses(second: LevelCost, share: float) -> None:
    """Within a twentieth, for failures that are rare compared with what a save costs."""
    rate, first, restart_s = 1 / 40_000, LevelCost(1.0, 1.0), 50.0
    rates = share * rate, (1 - share) * rate
    pattern = two_levels(first, second, rates, restart_s)
    assert pattern.saves > 1
    simulated = Job(first, second, rates, restart_s, pattern, random.Random(3)).lost(30_000)
    assert pattern.lost == pytest.approx(simulated, rel=0.05)


def loop(root: Path, target: str, costs: Costs, *, node_local: bool) -> None:
    """Write the log of a loop on a target."""

    def mark(log: TimingLog) -> None:
        log.provenance["node_local"] = node_local

    LoopSimulation(target=target, costs=costs, spec=SPEC, noise=0.001).write(root, mark)


@pytest.fixture
def studied(tmp_path: Path) -> Callable[..., Path]:
    """Write the logs of a loop on a fast local target and on a slow shared one."""

    def write(local: Costs, shared: Costs) -> Path:
        loop(tmp_path, "nvme", local, node_local=True)
        loop(tmp_path, "lustre", shared, node_local=False)
        return tmp_path

    return write


def advice(root: Path, share: float, **assumptions: Any) -> LevelsAdvice:
    """The only advice on these results."""
    [found] = advise_levels(settings(load_results(root)), Assumptions(**assumptions), share)
    return found


def test_two_levels_pay_where_the_local_one_is_cheaper(studied: Callable[..., Path]) -> None:
    """They lose less, the rarer a node is lost."""
    root = studied(Costs(snapshot_s=0.5, latency_s=4.0), Costs(snapshot_s=8.0, latency_s=60.0))
    often, seldom = advice(root, 0.5), advice(root, 0.99)
    assert often.two.lost < often.one.lost
    assert seldom.two.lost < often.two.lost
    assert seldom.two.saves > often.two.saves > 1
    assert seldom.one == often.one


def test_they_don_t_where_the_local_one_is_not(studied: Callable[..., Path], capsys: Any) -> None:
    """The table has both, and the sentence below it names the shared target."""
    root = studied(Costs(snapshot_s=8.0, latency_s=60.0), Costs(snapshot_s=0.5, latency_s=4.0))
    assert advice(root, 0.5).two.lost > advice(root, 0.5).one.lost
    assert advise_(root, local_share=0.5) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "One level or two" in printed
    assert "save on lustre alone: a second level would not lose less" in printed


def test_a_copy_that_was_measured(tmp_path: Path, capsys: Any) -> None:
    """It costs κ / (1 + κ) of its duration, part of the lost time; nothing is taken from the shared target."""
    loop(tmp_path, "lustre", Costs(snapshot_s=8.0, latency_s=60.0), node_local=False)

    def drained(log: TimingLog) -> None:
        log.provenance["node_local"] = True
        log.storage["drain_to"] = "lustre"
        log.saves[:] = [replace(save, drained_s=22.4) for save in log.saves]

    costs = Costs(snapshot_s=0.5, latency_s=2.2, tail_s=(0.25,) * 16)  # the last one ends 22.5 s after the call
    LoopSimulation(target="nvme", way="checkpointer", costs=costs, spec=SPEC, noise=0.001).write(tmp_path, drained)
    found = advice(tmp_path, 0.9)
    assert found.measured is not None
    assert found.measured.slowdown.estimate == pytest.approx(0.25, rel=0.02)
    copy = LevelCost(0.2 * (22.4 - 2.2), 22.4)
    rate, restart_s = 1 / (3600 * Assumptions().mtbf_hours), Assumptions().restart_s
    first = LevelCost(0.5 + 16 * 0.25 - copy.lost_s, 2.2)
    expected = two_levels(first, copy, (0.9 * rate, 0.1 * rate), restart_s)
    assert found.two.lost == pytest.approx(expected.lost, rel=0.05)
    assert advise_(tmp_path, local_share=0.9) == 0
    assert "lustre has it 22.4 s after the call" in " ".join(capsys.readouterr().out.split())


def test_without_two_targets(tmp_path: Path) -> None:
    """The message names what a study needs."""
    loop(tmp_path, "lustre", Costs(snapshot_s=1.0), node_local=False)
    with pytest.raises(ResultsError, match="write `node_local = true` below one"):
        advice(tmp_path, 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, math.nan])
def test_a_share_out_of_range(studied: Callable[..., Path], share: float) -> None:
    """A number between 0 and 1 is expected."""
    root = studied(Costs(snapshot_s=1.0), Costs(snapshot_s=1.0))
    with pytest.raises(ResultsError, match="--local-share"):
        advice(root, share)
