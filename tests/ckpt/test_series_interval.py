"""`every="auto"`: the interval follows from what saves cost a loop, whose clock is simulated here."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.advice.intervals import daly_interval_s
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from ckpt.series import interval
from ckpt.series.interval import AutomaticInterval, best_period_s
from ckpt.series.recent import RecentSaves, duration

HOUR_S = 3600.0

costs_s = st.floats(0, 1e4)
latencies_s = st.floats(0, 1e4)
mtbfs_s = st.floats(1, 1e8)


class Loop:
    """A training loop with saves behind it; a step is slower as long as one is in flight."""

    def __init__(self, mtbf_s: float, *, step_s: float = 1.0, copy_s: float = 0.0, latency_s: float = 0.0) -> None:
        self.now_s = 1000.0
        self.step_s, self.copy_s, self.latency_s, self.slowdown = step_s, copy_s, latency_s, 1.0
        self.fails = False
        self.saves = RecentSaves(lambda: self.now_s)
        self.interval = AutomaticInterval(mtbf_s, lambda: self.now_s)
        self.step = 0
        self.calls: list[tuple[int, float]] = []
        self.lost_s: list[float] = []
        self._future: Future[None] | None = None
        self._end_s = 0.0

    def train(self, more_s: float = 0.0) -> None:
        """One step, which takes so much longer; and a save if it is due."""
        self.step += 1
        step_s = self.step_s * (self.slowdown if self._future else 1)
        self.now_s += step_s + more_s
        if self._future:
            self.lost_s[-1] += step_s - self.step_s
            self._end_the_save()
        if self.interval.due(self.step, self.saves):
            self.save()

    def save(self) -> None:
        """Call a save."""
        call_s = self.now_s
        self.now_s += self.copy_s
        self.calls.append((self.step, call_s))
        self.lost_s.append(self.copy_s)
        self._future, self._end_s = Future(), call_s + max(self.copy_s, self.latency_s)
        self.saves.add(self.step, call_s, self._future)

    def until(self, saves: int) -> None:
        """Train until so many saves were called."""
        while len(self.calls) < saves:
            self.train()

    def _end_the_save(self) -> None:
        if self._future and self._end_s <= self.now_s:
            now_s, self.now_s = self.now_s, self._end_s
            if self.fails:
                self._future.set_exception(OSError("no room"))
            else:
                self._future.set_result(None)
            self.now_s, self._future = now_s, None


@given(costs_s, latencies_s, mtbfs_s)
def test_the_period_is_bounded(lost_s: float, latency_s: float, mtbf_s: float) -> None:
    """A tenth of the time at most is lost, but there are two saves in an MTBF; none waits for the one before."""
    period_s = best_period_s(lost_s, latency_s, mtbf_s)
    assert period_s >= latency_s
    assert period_s <= max(mtbf_s / 2, latency_s)
    assert lost_s <= 0.1001 * period_s or period_s >= mtbf_s / 2


@given(costs_s, latencies_s, mtbfs_s, st.floats(1, 100))
def test_the_period_is_monotone(lost_s: float, latency_s: float, mtbf_s: float, factor: float) -> None:
    """Saves that cost more, take longer, or guard against rarer failures, come less often."""
    least_s = best_period_s(lost_s, latency_s, mtbf_s) * (1 - 1e-9)
    assert best_period_s(lost_s * factor, latency_s, mtbf_s) >= least_s
    assert best_period_s(lost_s, latency_s * factor, mtbf_s) >= least_s
    assert best_period_s(lost_s, latency_s, mtbf_s * factor) >= least_s


@given(st.floats(0, 100), st.floats(5000, 1e8))
def test_the_period_is_the_advised_one(lost_s: float, mtbf_s: float) -> None:
    """Where no bound matters, as much computing lies between two saves as `advise` prints: Daly's interval."""
    assert best_period_s(lost_s, 0, mtbf_s) - lost_s == pytest.approx(daly_interval_s(lost_s, mtbf_s))


@settings(max_examples=40)
@given(
    step_s=st.floats(0.5, 20), copy_s=st.floats(0.001, 10), latency_s=st.floats(0, 200), slowdown=st.floats(1, 3),
    mtbf_s=st.floats(1000, 20_000),
)  # fmt: skip
def test_the_period_converges(step_s: float, copy_s: float, latency_s: float, slowdown: float, mtbf_s: float) -> None:
    """After some saves, it is that of what a save costs this loop: what it blocks, and by what it slows steps down."""
    loop = Loop(mtbf_s, step_s=step_s, copy_s=copy_s, latency_s=max(copy_s, latency_s))
    loop.slowdown = slowdown
    loop.until(6)
    commit_s, period_s = loop.saves.commit_s, loop.interval.period_s
    assert commit_s == pytest.approx(loop.latency_s)
    assert period_s is not None
    ends_s = min(loop.lost_s[:-1]), max(loop.lost_s[:-1])  # the last one has just begun
    least_s, most_s = (best_period_s(lost_s, loop.latency_s, mtbf_s) for lost_s in ends_s)
    assert least_s / 1.201 <= period_s <= most_s * 1.201
    between_s = loop.calls[-1][1] - loop.calls[-2][1]
    assert 0.999 * period_s <= between_s <= period_s + 1.001 * step_s * slowdown


def test_the_first_save_comes_after_ten_steps() -> None:
    """So that there is something to measure; and the next one, when that save is committed."""
    loop = Loop(HOUR_S, latency_s=25.0)
    loop.until(1)
    assert loop.step == 10
    loop.until(2)
    assert loop.step == 35


def test_the_first_save_counts_until_there_is_another() -> None:
    """It starts a process, and costs more than those that follow."""
    loop = Loop(HOUR_S, copy_s=40.0)
    loop.until(1)
    loop.copy_s = 1.0
    loop.until(2)
    assert loop.interval.period_s == best_period_s(40, 40, HOUR_S)
    loop.until(3)
    assert loop.interval.period_s == best_period_s(1, 40, HOUR_S)


def test_a_long_step_beside_a_save_changes_nothing() -> None:
    """A validation, for example: one save of five seems to cost more than it does."""
    loop = Loop(HOUR_S, copy_s=1.0, latency_s=1.0)
    loop.until(4)
    before_s = loop.interval.period_s
    loop.train(more_s=300.0)
    loop.until(6)
    assert loop.interval.period_s == before_s


def test_long_steps_between_saves_are_no_cost() -> None:
    """Steps without a save don't matter, nor do a few slow ones among the first."""
    loop = Loop(HOUR_S, copy_s=1.0, latency_s=1.0)
    for _ in range(4):
        loop.train(more_s=60.0)
    loop.until(3)
    assert loop.interval.period_s == best_period_s(1, 1, HOUR_S)


def test_a_save_costs_no_less_than_it_blocks() -> None:
    """Where the steps after it are faster by chance, too."""
    loop = Loop(HOUR_S, copy_s=2.0, latency_s=2.5)
    loop.slowdown = 0.2
    loop.until(3)
    assert loop.interval.period_s == best_period_s(2, 2.5, HOUR_S)


def test_a_change_is_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    """A line in the log has the interval, the one before, and what it follows from; small changes aren't made."""
    caplog.set_level(logging.INFO, "ckpt")
    loop = Loop(6 * HOUR_S, step_s=0.5, copy_s=2.0, latency_s=4.0)
    loop.until(4)
    assert caplog.messages == [
        "saving every 295 s (about 589 steps): a save loses 2 s and is committed within 4 s, MTBF 6 h"
    ]
    loop.copy_s = 2.5
    loop.until(8)
    assert len(caplog.messages) == 1
    loop.copy_s = 8.0
    loop.latency_s = 8.0
    loop.until(13)
    assert caplog.messages[1:] == [
        "saving every 591 s (about 1181 steps) instead of 295 s: a save loses 8 s and is committed within 8 s, MTBF 6 h"
    ]


def test_a_save_that_the_program_adds_is_measured_too() -> None:
    """One that wasn't due, before the first step or later; the period begins with it."""
    loop = Loop(HOUR_S, copy_s=2.0, latency_s=2.0)
    loop.save()
    for _ in range(2):
        loop.train()
    assert loop.interval.period_s == best_period_s(2, 2, HOUR_S)
    loop.save()
    loop.until(3)
    assert loop.calls[2][1] - loop.calls[1][1] == pytest.approx(best_period_s(2, 2, HOUR_S), abs=1.5)


def test_a_save_that_failed_is_not_measured() -> None:
    """The next one is due after ten steps again, and raises its error."""
    loop = Loop(HOUR_S)
    loop.fails = True
    loop.until(2)
    assert loop.interval.period_s is None
    assert loop.saves.commit_s is None
    assert [10, 20] == [step for step, _ in loop.calls]


def test_a_second_call_for_a_step_changes_nothing() -> None:
    """`due` may be asked twice."""
    saves = RecentSaves()
    automatic = AutomaticInterval(HOUR_S)
    answers = [automatic.due(step, saves) for step in range(1, 11) for _ in range(2)]
    assert answers == [False] * 18 + [True] * 2


def test_a_real_loop(tmp_path: Path) -> None:
    """Saves of a Checkpointer are measured, behind the program and in it."""
    with Checkpointer(tmp_path, every="auto", mtbf_s=HOUR_S, background="none") as checkpoints:
        assert checkpoints.commit_s is None
        saved = 0
        for step in range(1, 14):
            if checkpoints.due(step):
                saved += 1
                checkpoints.save(step, {"step": step})
        assert saved >= 1
        assert checkpoints.commit_s is not None
        assert isinstance(checkpoints._interval, AutomaticInterval)
        assert checkpoints._interval.period_s is not None
        assert checkpoints._interval.period_s >= checkpoints.commit_s / interval.CHANGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": "auto"}, 'every="auto" needs mtbf_s'),
        ({"every": "auto", "mtbf_s": 0}, r"mtbf_s=0 isn't possible: seconds, more than 0"),
        ({"every": "auto", "mtbf_s": float("nan")}, "mtbf_s=nan isn't possible"),
        ({"every": 5, "mtbf_s": 3600}, "mtbf_s=3600 has no effect with every=5"),
        ({"every": "often"}, "every='often' isn't possible: a number of steps, 1 or more, or \"auto\""),
        ({"every": 0}, "every=0 isn't possible"),
    ],
)
def test_arguments_that_can_t_be_used(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """They are refused at once, with what to type."""
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(tmp_path, **arguments)


def test_durations() -> None:
    """In the unit that suits them."""
    assert [duration(s) for s in (0, 0.01234, 59.96, 600, 5400, 6 * HOUR_S)] == [
        "0 s", "0.0123 s", "60 s", "10 min", "90 min", "6 h",
    ]  # fmt: skip
