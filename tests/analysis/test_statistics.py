"""Intervals: on samples whose truth is known, and on those that support nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.measures.statistics import (
    Interval,
    _by_job,
    _Draws,
    difference_of,
    geometric_mean,
    median_interval,
    ratio_interval,
)
from analysis.measures.trials import Trials

SECONDS = st.floats(1e-6, 1e6)


def simulated(seed: int, jobs: int, trials: int, median_s: float = 1.0, between: float = 0.05) -> Trials:
    """Trials whose jobs differ among each other as much as `between`, and trials within a job by 2 %."""
    draw = np.random.default_rng(seed)
    level = median_s * np.exp(draw.normal(0, between, (jobs, 1)))
    seconds = level * np.exp(draw.normal(0, 0.02, (jobs, trials)))
    names = np.repeat([f"job {number}" for number in range(jobs)], trials)
    return Trials(tuple(seconds.ravel().tolist()), tuple(names.tolist()))


def same(first: Interval, second: Interval) -> bool:
    """Whether two intervals are equal, NaN for NaN."""
    return repr(first) == repr(second)


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], Interval(math.nan, math.nan, math.nan)),
        ([3.0], Interval(3.0, math.nan, math.nan)),
        ([2.0, 2.0], Interval(2.0, 2.0, 2.0)),
    ],
)
def test_few_samples_support_no_more_than_they_do(durations: list[float], expected: Interval) -> None:
    """None have no median, one has no interval, equal ones have one of no width."""
    assert same(median_interval(durations, ["job"] * len(durations)), expected)


@given(st.lists(st.tuples(SECONDS, st.sampled_from("abc")), min_size=2, max_size=12), st.randoms())
def test_an_interval_lies_among_the_samples(samples: list[tuple[float, str]], order: random.Random) -> None:
    """It holds the median, never leaves the samples' range, and does not depend on their order."""
    seconds, jobs = zip(*samples, strict=True)
    found = median_interval(seconds, jobs)
    order.shuffle(samples)

    rounding = 1 + 1e-12
    assert min(seconds) <= found.low * rounding
    assert found.low <= found.high <= max(seconds) * rounding
    assert found.estimate == float(np.median(seconds))
    assert found == median_interval(*zip(*samples, strict=True))


@given(st.lists(SECONDS, min_size=2, max_size=8), st.floats(0.01, 100))
def test_a_ratio_is_the_ratio_of_medians(seconds: list[float], factor: float) -> None:
    """Of samples and their multiple, it is the factor."""
    jobs = [str(number % 3) for number in range(len(seconds))]
    found = ratio_interval([factor * each for each in seconds], jobs, seconds, jobs)

    assert pytest.approx(factor) == found.estimate
    assert found.low <= found.estimate * (1 + 1e-9)
    assert found.high >= found.estimate * (1 - 1e-9)


@given(*(st.tuples(SECONDS, SECONDS, SECONDS).map(sorted) for _ in range(2)))
def test_a_difference_is_as_unsure_as_both_sides(first: list[float], second: list[float]) -> None:
    """Its interval is at least as wide as each side's, and at most as both; turned around it is the same."""
    one, other = (Interval(middle, low, high) for low, middle, high in (first, second))
    found, turned = difference_of(one, other), difference_of(other, one)
    widths = one.high - one.low, other.high - other.low

    rounding = 1e-9 * max(first[-1], second[-1])
    assert found.low <= found.estimate <= found.high
    assert max(widths) / 2 - rounding <= (found.high - found.low) <= sum(widths) + rounding
    assert (turned.estimate, turned.low, turned.high) == (-found.estimate, -found.high, -found.low)


def test_trials_of_one_job_are_not_taken_for_independent() -> None:
    """Where jobs differ and their trials hardly do, the interval is as wide as few jobs make it."""
    levels = [1.0, 1.2, 0.9, 1.1]
    seconds = [level * (1 + 0.001 * trial) for level in levels for trial in range(20)]
    respected = median_interval(seconds, [str(level) for level in levels for _ in range(20)])
    ignored = median_interval(seconds, [str(number) for number in range(len(seconds))])

    assert respected.high - respected.low > 1.5 * (ignored.high - ignored.low)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 100 simulated studies of ten jobs, the 95 % interval of a factor of two holds two in 90 or more."""
    missed = []
    for seed in range(100):
        slow, fast = simulated(2 * seed, 10, 5, median_s=2.0), simulated(2 * seed + 1, 10, 5)
        interval = ratio_interval(slow.durations_s, slow.jobs, fast.durations_s, fast.jobs)
        if not interval.low <= 2.0 <= interval.high:
            missed.append((seed, interval))

    assert len(missed) <= 10, missed


@pytest.mark.parametrize("zero", [0.0, 5e-324])
def test_what_no_clock_can_tell_is_no_measurement(zero: float) -> None:
    """A duration of zero has a median, and no ratio: nothing divides by it."""
    jobs = ["a", "b"]

    assert median_interval([zero, zero], jobs).estimate == zero
    assert math.isnan(ratio_interval([1.0, 2.0], jobs, [zero, 1.0], jobs).estimate)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [([2.0, 0.5], 1.0), ([4.0], 4.0), ([], math.nan), ([2.0, math.nan], math.nan), ([2.0, 0.0], math.nan)],
)
def test_geometric_mean(ratios: Sequence[float], expected: float) -> None:
    """Twice as long here and half as long there is even; with one unknown, so is the mean."""
    assert pytest.approx(expected, nan_ok=True) == geometric_mean(ratios)


@pytest.mark.parametrize("between", [0.0, 0.5])
@pytest.mark.parametrize("trials", [1, 4, 5])
def test_many_jobs_are_resampled_as_numpy_would(trials: int, between: float) -> None:
    """The quick way by how often each job was drawn gives what the medians of the drawn trials are."""
    many = simulated(1, 40, trials, between=between)
    draws = _Draws(_by_job(many.durations_s, many.jobs))
    chosen = np.random.default_rng(2).integers(0, 40, (50, 40))

    expected = np.median(draws._padded[chosen].reshape(50, -1), axis=1)

    assert np.allclose(expected, draws.medians(chosen), rtol=1e-12)
