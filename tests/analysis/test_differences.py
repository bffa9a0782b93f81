"""Whether methods differ: rounds are blocks, on studies whose truth is known and on those that support nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.advice.advice import advise
from analysis.advice.assumptions import Assumptions
from analysis.logs.load import load_results
from analysis.measures.comparison import compare
from analysis.measures.differences import NOT_SIGNIFICANT, differences
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from analysis.measures.trials import NO_TRIALS
from analysis.tables.before_after import contrast
from analysis.tables.table import Ratio
from support.simulated import timed
from support.studies import MakeStudy, StudyOnDisk

REFERENCE, FAST, ALIKE, SLOW = "torch_save", "safetensors_tuned", "safetensors_file", "hdf5"

DISTURBED = 3
"""The round that took more than twice as long, and not for all alike."""

RATIOS = {
    FAST: (0.27, 0.31, 0.60, 0.16),
    ALIKE: (1.02, 0.98, 1.20, 0.97),
    SLOW: (1.90, 2.10, 1.50, 2.20),
}
"""To the reference in the same round, in each of four rounds."""

REFERENCE_S = (2.6, 2.4, 6.1, 2.5)


def study_of_four(make_study: MakeStudy, rounds: Sequence[int] = (1, 2, 3, 4)) -> StudyOnDisk:
    """Four rounds of four methods, each with three trials within 2 %; the third round is disturbed."""
    study = make_study(strategies=[REFERENCE, *RATIOS], rounds=4)
    for label, number in itertools.product([REFERENCE, *RATIOS], rounds):
        load_s = REFERENCE_S[number - 1] * RATIOS.get(label, (1, 1, 1, 1))[number - 1]
        cold = [load_s * factor for factor in (0.99, 1.0, 1.01)]
        study.log(label, number=number, save=[5.0, 5.1, 4.9], cold=cold)
    return study


def test_one_disturbed_round_does_not_hide_a_difference(make_study: MakeStudy) -> None:
    """In each of four rounds a method loads in 0.27, 0.31, 0.60 and 0.16 of the reference's time: it is faster."""
    [found] = compare(load_results(study_of_four(make_study).root))
    load = {label: relative.operations[Operation.LOAD_COLD] for label, relative in found.differences.items()}

    assert load[FAST].ratio.estimate == pytest.approx(stats.gmean(RATIOS[FAST]))
    assert load[FAST].ratio.high < 1
    assert {label: difference.verdict() for label, difference in load.items()} == {
        FAST: "faster", ALIKE: NOT_SIGNIFICANT, SLOW: "slower",
    }  # fmt: skip
    assert load[FAST].ratio.estimate < load[ALIKE].ratio.estimate < load[SLOW].ratio.estimate


def test_a_method_that_only_reports_in_the_quiet_rounds_is_compared_within_them(make_study: MakeStudy) -> None:
    """Its median is not set against one that holds the disturbed round: equal within every round is equal."""
    study = make_study(strategies=[REFERENCE, FAST], rounds=6)
    for number, factor in enumerate((1.0, 1.1, 0.9, 8.0, 9.0, 7.0), start=1):
        study.log(REFERENCE, number=number, save=[factor, factor * 1.01])
        if number < 4:
            study.log(FAST, number=number, save=[factor, factor * 1.01])

    [found] = compare(load_results(study.root))

    assert found.differences[FAST].operations[Operation.SAVE].ratio.estimate == pytest.approx(1.0)
    assert found.differences[FAST].operations[Operation.SAVE].verdict() == NOT_SIGNIFICANT


def test_advice_respects_rounds(make_study: MakeStudy) -> None:
    """One method is the fastest to load, and the others are not named beside it, for all that one round did."""
    [setting] = settings(load_results(study_of_four(make_study).root))
    picks = {pick.question: pick for pick in advise(setting, Assumptions()).picks}

    assert picks["fastest load"].best == (FAST,)
    assert picks["fastest load"].next_ratio.low > 1


def test_the_least_loss_is_judged_within_rounds(measured: Callable[..., Any], setting: Callable[..., Any]) -> None:
    """Rounds that differ by a factor of four leave two schedules apart that differ by a third in every round."""
    rounds = [1.0, 4.0, 1.5, 2.0, 3.0]
    methods = [measured(name, [factor * each for each in rounds], [1.0] * 5) for name, factor in (("a", 1), ("b", 1.8))]
    picks = {pick.question: pick for pick in advise(setting(*methods), Assumptions()).picks}

    assert picks["least of the machine lost"].best == ("a",)
    assert picks["least of the machine lost"].next_ratio.low > 1


def test_a_round_without_one_of_a_pair_says_nothing_of_it() -> None:
    """The ratio and its interval are those of the rounds that both have."""
    first, second = [[2.0], [2.2], [2.1], [9.0]], [[1.0], [1.05], [1.0], [7.0], [3.0]]
    [found] = differences([(timed(first, list("abcx")), timed(second, list("abcyz")))])
    [common] = differences([(timed(first[:3]), timed(second[:3]))])

    assert found.ratio == common.ratio
    assert found.test.p == pytest.approx(common.test.p)


def test_without_common_rounds_nothing_is_claimed() -> None:
    """Different rounds can't tell a method from its round, however far the two are apart."""
    [found] = differences([(timed([[9.0], [9.1], [9.2]], list("abc")), timed([[1.0], [1.1], [1.2]], list("def")))])

    assert found.ratio.estimate > 5
    assert math.isnan(found.ratio.low)
    assert found.verdict() == "too few rounds to tell"


@pytest.mark.parametrize(
    ("rounds", "trials", "factor", "expected"),
    [
        (5, 3, 2.0, "slower"),
        (5, 3, 0.5, "faster"),
        (5, 3, 1.0, NOT_SIGNIFICANT),
        (3, 3, 2.0, "slower"),
        (2, 9, 2.0, "too few rounds to tell"),
        (1, 5, 2.0, "slower"),
        (1, 3, 2.0, "too few trials to tell"),
        (1, 1, 2.0, "too few trials to tell"),
    ],
)
def test_verdicts(rounds: int, trials: int, factor: float, expected: str) -> None:
    """A difference is named, and its absence only where it could have been seen: it takes three rounds."""
    draw = np.random.default_rng(1)
    first, second = np.exp(draw.normal(0, 0.03, (2, rounds, trials)))

    [found] = differences([(timed((factor * first).tolist()), timed(second.tolist()))])

    assert found.verdict() == expected


def test_nothing_measured_is_nothing_said() -> None:
    """A side without a valid sample has no ratio and no verdict; without pairs there are no differences."""
    [found] = differences([(timed([[1.0]]), NO_TRIALS)])

    assert found.verdict() == ""
    assert differences([]) == []


def test_one_job_against_several_is_too_few() -> None:
    """One round can't show that a method is slower, however many trials it has."""
    [found] = differences([(timed([[9.0] * 50]), timed([[1.0, 1.1]] * 8))])

    assert math.isnan(found.test.p)
    assert found.verdict() == "too few rounds to tell"


def test_two_jobs_of_different_rounds_are_not_set_against_each_other() -> None:
    """Trials are permuted only where the two jobs are of one round; else the round may be the difference."""
    sides = timed([[2.0, 2.1, 2.2, 2.3, 2.4]], ["1"]), timed([[1.0, 1.1, 1.2, 1.3, 1.4]], ["2"])

    [apart], [together] = differences([sides]), differences([(sides[0], timed([list(sides[1].durations_s)], ["1"]))])

    assert apart.verdict() == "too few rounds to tell"
    assert together.verdict() == "slower"


def test_more_trials_are_not_more_rounds() -> None:
    """The trials of a job are parts of one observation: ten times as many of the same change nothing."""
    first, second = [[1.3], [1.5], [1.2], [1.4]], [[1.0], [1.1], [1.1], [1.0]]
    [few] = differences([(timed(first), timed(second))])
    [many] = differences([(timed([each * 10 for each in first]), timed([each * 10 for each in second]))])

    assert few == many


def test_equal_durations_do_not_differ() -> None:
    """Where nothing scatters and nothing differs, the ratio is 1 and no difference is called one."""
    [found] = differences([(timed([[0.1]] * 4), timed([[0.1]] * 4))])

    assert (found.ratio.low, found.ratio.estimate, found.ratio.high) == pytest.approx((1, 1, 1))
    assert found.verdict() == NOT_SIGNIFICANT


def test_a_constant_factor_is_a_difference() -> None:
    """Rounds that differ among each other, with a ratio that is always the same: nothing speaks for chance."""
    rounds = [1.0, 3.0, 1.0, 7.0]
    [found] = differences([(timed([[1.5 * each] for each in rounds]), timed([[each] for each in rounds]))])

    assert (found.ratio.low, found.ratio.high) == pytest.approx((1.5, 1.5))
    assert found.verdict() == "slower"


def test_ties_are_no_difference_by_themselves() -> None:
    """A coarse clock that shows a difference in one round of four, and none in the others, shows none."""
    [found] = differences([(timed([[1.0], [1.0], [1.1], [1.0]]), timed([[1.0]] * 4))])

    assert found.verdict() == NOT_SIGNIFICANT


def test_the_error_is_that_of_the_additive_model() -> None:
    """With a missing cell too, p is Student's with the residual of log time = method + round, twice as of two tests."""
    logs = np.random.default_rng(5).normal(0, 0.1, (4, 5))
    logs[1] += 0.3
    methods = [timed(np.exp(row)[:, np.newaxis].tolist()) for row in logs[:3]]
    methods.append(timed(np.exp(logs[3, 1:])[:, np.newaxis].tolist(), ["1", "2", "3", "4"]))
    cells = [(method, number) for method in range(4) for number in range(5) if (method, number) != (3, 0)]
    design = np.array([[*(i == m for i in range(4)), *(j == r for j in range(5))] for m, r in cells], float)
    values = np.array([logs[cell] for cell in cells])
    effects, _, rank, _ = np.linalg.lstsq(design, values)
    left = values - design @ effects
    freedom = len(cells) - rank
    t = abs((logs[1] - logs[0]).mean()) / math.sqrt(2 * (left @ left) / freedom / 5)

    [found] = differences([(methods[1], methods[0])], methods)
    [alone] = differences([(methods[1], methods[0])])

    assert found.test.p == pytest.approx(2 * 2 * stats.t.sf(t, freedom))
    assert alone.test.p == pytest.approx(stats.ttest_rel(logs[1], logs[0]).pvalue)
    assert found.test.p < alone.test.p


def test_rounds_of_two_studies_are_no_pairs() -> None:
    """Each side is a sample of rounds of its own: Welch's test, and a factor that one study's rounds share counts."""
    first, second = [1.0, 2.0, 1.5, 1.2], [1.3, 2.6, 1.95, 1.56]  # as pairs, always 1.3 times
    pair = timed([[each] for each in second]), timed([[each] for each in first])

    [found] = differences([pair], shared_rounds=False)
    expected = stats.ttest_ind(np.log(second), np.log(first), equal_var=False)

    assert found.test.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (found.ratio.low, found.ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.verdict() == NOT_SIGNIFICANT
    assert differences([pair])[0].verdict() == "slower"


@pytest.mark.parametrize(
    ("rounds", "expected"), [((4, 4), "slower"), ((3, 3), "slower"), ((2, 8), "too few rounds to tell")]
)
def test_two_studies_need_three_rounds_a_side(rounds: tuple[int, int], expected: str) -> None:
    """With fewer on one side, nothing says how far its rounds differ."""
    draw = np.random.default_rng(3)
    sides = [np.exp(draw.normal(level, 0.05, (count, 2))).tolist() for level, count in zip((1, 0), rounds, strict=True)]

    [found] = differences([(timed(sides[0]), timed(sides[1]))], shared_rounds=False)

    assert found.verdict() == expected


@pytest.mark.parametrize(
    ("first", "factor", "expected"), [((1.0, 2.0, 1.5), 1.3, NOT_SIGNIFICANT), ((1.0, 1.05, 0.98), 2.0, "slower")]
)
def test_compare_takes_rounds_for_a_sample(
    first: Sequence[float], factor: float, expected: str, make_study: MakeStudy, tmp_path: Path
) -> None:
    """`compare` pairs no rounds, though they have the same numbers, and sees a factor of two from three rounds on."""
    sides = []
    for name, times in (("before", 1.0), ("after", factor)):
        study = make_study(strategies=[REFERENCE], rounds=len(first), below=tmp_path / name)
        for number, seconds in enumerate(first, start=1):
            study.log(REFERENCE, number=number, save=[times * seconds, times * seconds])
        sides.append(load_results(study.root))

    [row] = contrast(*sides)[0].rows
    [verdict] = [cell.verdict for cell in row if isinstance(cell, Ratio)]

    assert verdict == expected


@pytest.mark.parametrize("duration", [0.0, 5e-324, -1.0, math.inf])
def test_what_no_clock_can_show_is_no_measurement(duration: float) -> None:
    """A duration of nothing, or without an end, has neither ratio nor test: nothing divides by it."""
    [found] = differences([(timed([[1.0], [2.0]]), timed([[duration], [1.0]]))])

    assert found.verdict() == ""
    assert math.isnan(found.test.p)
