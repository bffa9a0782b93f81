"""Tests whether methods differ: a study is a randomised complete block design, and its rounds are the blocks.

What disturbs a round disturbs all methods in it, so methods are compared within rounds: by the logarithm of the ratio
of their medians in the same round. The trials of a job are parts of one observation. The round is the unit.

A difference has to pass two tests. The first is the pair's own: the 95 % interval of its ratio, by Student's t over its
rounds, does not hold 1. It assumes nothing of the other methods. The second is corrected for how many differences are
looked at, which few rounds alone could hardly pass. It may borrow its error: the scatter of the pair, or that of all
methods in all rounds, which method and round leave of the logarithms of the medians (the additive model of a block
design). Its p is twice the smaller of the two (Bonferroni). So methods that scatter alike support one another, quiet
methods can't make a noisy one look sure, and noisy ones can't hide a quiet one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from scipy import stats

from analysis.measures.statistics import CONFIDENCE, UNKNOWN, Floats, Interval, measurable, ratio_interval
from analysis.measures.trials import NO_TRIALS, Trials

SIGNIFICANT_P = 0.05
"""A corrected p under this is called a difference."""

FEWEST_ROUNDS = 3
"""A test needs so many: with two, nothing but the normal distribution would speak against chance."""

NOT_SIGNIFICANT = "not significant"

_RESAMPLES = 1999

_LEAST_LOG = 1e-9
"""A difference of logarithms below this is rounding."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the test that the correction is for."""

    p: float
    """Two-sided, uncorrected; NaN where there is too little to test."""
    enough: bool
    """Whether any result could have been called a difference."""
    unit: str
    """What was counted: `rounds`, or `trials` where both sides are one job."""


_TOO_FEW_ROUNDS = Outcome(math.nan, enough=False, unit="rounds")


@dataclass(frozen=True, slots=True)
class Difference:
    """How two methods differ: the ratio of their durations, and whether it could be chance."""

    ratio: Interval
    """The geometric mean, over the rounds, of the ratio of the two medians."""
    test: Outcome
    corrected_p: float
    """p, corrected for all differences that are looked at together; NaN where the test can't show any."""

    @property
    def significant(self) -> bool:
        """Whether both agree: the interval of the pair's own rounds, and the corrected test."""
        return self.corrected_p < SIGNIFICANT_P and (self.ratio.low > 1 or self.ratio.high < 1)

    def verdict(self, more: str = "slower", less: str = "faster") -> str:
        """Return the difference in words, empty where unknown; absence of evidence isn't evidence of absence."""
        if math.isnan(self.ratio.estimate):
            return ""
        if not self.test.enough:
            return f"too few {self.test.unit} to tell"
        if not self.significant:
            return NOT_SIGNIFICANT
        return more if self.ratio.estimate > 1 else less


def differences(
    pairs: Sequence[tuple[Trials, Trials]], among: Sequence[Trials] = (), *, shared_rounds: bool = True
) -> list[Difference]:
    """Compare the first of every pair with the second; the ps are corrected for all pairs together.

    By Benjamini and Hochberg: of the differences that are called so, at most 5 % are to be chance. (Holm's bound on any
    error at all would need more rounds than studies have.) Pairs that could show nothing don't count.

    Args:
        pairs: of one operation.
        among: the other methods of the same rounds, whose scatter adds to what is known of the error.
        shared_rounds: False where the sides come from two studies, whose rounds are unrelated: the rounds of the
            two sides are then two samples, and Welch's t test compares the two.
    """
    usable = {
        id(trials): trials if measurable(trials.durations_s) else NO_TRIALS
        for trials in (*among, *(side for pair in pairs for side in pair))
    }
    error = _common_error([round_medians(trials) for trials in usable.values()]) if shared_rounds else _NO_ERROR
    return _corrected([_difference(usable[id(a)], usable[id(b)], error, shared_rounds) for a, b in pairs])


def _difference(first: Trials, second: Trials, error: _Error, shared_rounds: bool) -> Difference:
    if not (len(first) and len(second)):
        return Difference(UNKNOWN, _TOO_FEW_ROUNDS, math.nan)
    a, b = round_medians(first), round_medians(second)
    same_round = not shared_rounds or a.keys() == b.keys()
    if len(set(first.jobs)) == len(set(second.jobs)) == 1 and same_round:
        return _of_two_jobs(first, second)
    return _within_rounds(a, b, error) if shared_rounds else _between_rounds(a, b)


@functools.lru_cache(maxsize=1024)
def round_medians(trials: Trials) -> Mapping[str, float]:
    """Return the median duration in s, by round."""
    rounds: dict[str, list[float]] = {}
    for name, duration in zip(trials.rounds or trials.jobs, trials.durations_s, strict=True):
        rounds.setdefault(name, []).append(duration)
    return MappingProxyType({name: float(np.median(rounds[name])) for name in sorted(rounds)})


def _corrected(uncorrected: Sequence[Difference]) -> list[Difference]:
    ps = [difference.test.p for difference in uncorrected if difference.test.enough]
    corrected = iter(stats.false_discovery_control(ps) if ps else ())
    return [
        replace(difference, corrected_p=float(next(corrected))) if difference.test.enough else difference
        for difference in uncorrected
    ]


@dataclass(frozen=True, slots=True)
class _Error:
    """The variance of the logarithm of a method's median in a round, what method and round explain taken out."""

    variance: float
    freedom: int
    """Its degrees of freedom; with none, the variance is NaN."""


_NO_ERROR = _Error(math.nan, 0)


def _common_error(methods: Sequence[Mapping[str, float]]) -> _Error:
    """Compute the residual of the additive model by least squares: methods may be missing in some rounds."""
    rounds = sorted({name for medians in methods for name in medians})
    if not rounds:
        return _NO_ERROR
    table = np.log([[medians.get(name, math.nan) for name in rounds] for medians in methods])
    present = np.isfinite(table)
    known = np.where(present, table, 0)
    normal = np.block(
        [[np.diag(present.sum(1)), present.astype(float)], [present.T.astype(float), np.diag(present.sum(0))]]
    )  # fmt: skip
    effects, _, rank, _ = np.linalg.lstsq(normal, np.concatenate([known.sum(1), known.sum(0)]), rcond=None)
    left = np.where(present, table - effects[: len(table), np.newaxis] - effects[len(table) :], 0)
    freedom = int(present.sum() - rank)
    return _Error(float((left**2).sum()) / freedom, freedom) if freedom > 0 else _NO_ERROR


def _within_rounds(first: Mapping[str, float], second: Mapping[str, float], error: _Error) -> Difference:
    """Compare in pairs: a round in which either is missing says nothing about the two."""
    ratios = [first[name] / second[name] for name in first if name in second]
    count = len(ratios)
    if count < 2:
        estimate = ratios[0] if count else float(np.exp(_logs(first).mean() - _logs(second).mean()))
        return Difference(Interval(estimate, math.nan, math.nan), _TOO_FEW_ROUNDS, math.nan)
    logs = np.log(ratios)
    mean, variance = float(logs.mean()), float(logs.var(ddof=1))
    ratio = _exp(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count))
    if count < FEWEST_ROUNDS:
        return Difference(ratio, _TOO_FEW_ROUNDS, math.nan)
    p = _student_p(mean, math.sqrt(variance / count), count - 1)
    if error.freedom > count - 1:  # there are other methods
        p = min(1.0, 2 * min(p, _student_p(mean, math.sqrt(2 * error.variance / count), error.freedom)))
    return Difference(ratio, Outcome(p, enough=True, unit="rounds"), math.nan)


def _between_rounds(first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    """Compare two samples of rounds, of two studies, by Welch's t test."""
    sides = _logs(first), _logs(second)
    counts = len(first), len(second)
    mean = float(sides[0].mean() - sides[1].mean())
    if min(counts) < 2:
        return Difference(_exp(mean, math.nan), _TOO_FEW_ROUNDS, math.nan)
    shares = [float(side.var(ddof=1)) / len(side) for side in sides]
    parts = sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    freedom = sum(shares) ** 2 / parts if parts else sum(counts) - 2
    scatter = math.sqrt(sum(shares))
    ratio = _exp(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * scatter)
    enough = min(counts) >= FEWEST_ROUNDS
    return Difference(
        ratio, Outcome(_student_p(mean, scatter, freedom) if enough else math.nan, enough, "rounds"), math.nan
    )


def _of_two_jobs(first: Trials, second: Trials) -> Difference:
    """Permute the trials of two jobs, one per side: the answer holds for these two jobs, and not for others."""
    ratio = ratio_interval(first.durations_s, first.jobs, second.durations_s, second.jobs)
    a, b = (np.log(sorted(side.durations_s)) for side in (first, second))
    if min(len(a), len(b)) < 2:
        return Difference(ratio, Outcome(math.nan, enough=False, unit="trials"), math.nan)

    def difference(a: Floats, b: Floats, axis: int = -1) -> Floats:
        return np.asarray(np.mean(a, axis=axis) - np.mean(b, axis=axis))

    p = stats.permutation_test((a, b), difference, vectorized=True, n_resamples=_RESAMPLES, rng=0).pvalue
    least_p = 2 / min(math.comb(len(a) + len(b), len(a)), _RESAMPLES + 1)
    return Difference(ratio, Outcome(float(p), enough=least_p <= SIGNIFICANT_P, unit="trials"), math.nan)


def _student_p(mean: float, scatter: float, freedom: float) -> float:
    """Return the two-sided p; where nothing scatters, any difference is certain."""
    if abs(mean) < _LEAST_LOG:
        return 1.0
    return float(2 * stats.t.sf(abs(mean) / scatter, freedom)) if scatter > 0 else 0.0


def _exp(mean: float, half_width: float) -> Interval:
    half_width = max(half_width, _LEAST_LOG)  # NaN stays
    with np.errstate(over="ignore"):
        estimate, low, high = (float(np.exp(value)) for value in (mean, mean - half_width, mean + half_width))
    return Interval(estimate, low, high)


def _logs(medians: Mapping[str, float]) -> Floats:
    return np.log(list(medians.values()))
