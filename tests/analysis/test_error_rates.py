"""How often a difference is called one where there is none, and found where there is one, in simulated studies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from analysis.measures.differences import SIGNIFICANT_P, Difference, differences
from analysis.measures.trials import NO_TRIALS, Trials
from support.simulated import simulated, timed


def rate(studies: Sequence[Difference]) -> float:
    """In what share of the studies a difference is called one."""
    return sum(study.significant for study in studies) / len(studies)


def test_no_difference_is_rarely_called_one() -> None:
    """Of 1,800 simulated studies where nothing differs, one in twenty at most is called different, disturbed or not.

    All seeds are fixed. With a true rate of 5 %, 6.2 % of 1,800 are exceeded once in a hundred times, 12 % of 150 too.
    """
    rates = {}
    for (rounds, methods), kind in itertools.product([(3, 2), (3, 10), (4, 4), (8, 4)], ["", "round", "cells"]):
        results = []
        for seed in range(150):
            first, second, *others = simulated(seed, rounds, [0.05] * methods, kind)
            results += differences([(second, first)], others)
        rates[rounds, methods, kind] = rate(results)

    assert max(rates.values()) <= 0.12, rates
    assert np.mean(list(rates.values())) <= 0.062, rates


def test_a_disturbed_round_costs_little_power() -> None:
    """Half as long is seen in nine of ten studies of four rounds of which one was disturbed, among ten methods."""
    results = []
    for seed in range(100):
        first, second, *others = simulated(seed, 4, [0.05] * 10, "round")
        half = Trials(tuple(each / 2 for each in second.durations_s), second.jobs, second.rounds)
        results += differences([(half, first)], others)

    assert rate(results) >= 0.85


@pytest.mark.parametrize("noisy", [0, 1])
def test_a_noisy_method_is_not_judged_by_quiet_ones(noisy: int) -> None:
    """Where one of a pair scatters ten times as much as nine others, their small error calls no difference alone."""
    sds = [0.02] * 10
    sds[noisy] = 0.2
    results = []
    for seed in range(200):
        first, second, *others = simulated(seed, 4, sds)
        results += differences([(second, first)], others)

    assert sum(each.test.p < SIGNIFICANT_P for each in results) > 40  # what the others' error by itself would call
    assert rate(results) <= 0.10  # of 200 with a true rate of 5 %, more once in a thousand times


def test_noisy_methods_hide_no_difference_between_quiet_ones() -> None:
    """A tenth more in each of four quiet rounds is seen, however much the eight other methods scatter."""
    results = []
    for seed in range(20):
        first, second, *others = simulated(seed, 4, [0.005, 0.005, *[0.5] * 8])
        more = Trials(tuple(1.1 * each for each in second.durations_s), second.jobs, second.rounds)
        results += differences([(more, first)], others)

    assert rate(results) == 1


def test_many_comparisons_are_corrected_for() -> None:
    """Of 60 tables with nine differences each, none of them real, at most 7 hold a single one that is called real."""
    called = 0
    for seed in range(60):
        first, *others = simulated(seed, 5, [0.05] * 10)
        called += any(each.significant for each in differences([(other, first) for other in others]))

    assert called <= 7


def test_what_can_show_nothing_weakens_no_other() -> None:
    """A pair that is too small to tell is not counted among the comparisons that are corrected for."""
    real = timed([[2.0], [2.1], [1.9], [2.05]]), timed([[1.0], [1.02], [0.99], [1.01]])
    hopeless = timed([[1.0], [1.1]], ["0", "1"]), timed([[1.0], [1.1]], ["2", "3"])

    alone, *_ = differences([real])
    among = differences([real, *[hopeless] * 20, (NO_TRIALS, NO_TRIALS)])

    assert among[0].corrected_p == among[0].test.p < SIGNIFICANT_P
    assert alone.verdict() == among[0].verdict() == "slower"
    assert [math.isnan(each.corrected_p) for each in among[1:]] == [True] * 21
