"""Compares the lost time of methods: by how many seconds per save one loses more than another, and whether by chance.

Differences are in s, not ratios: a method may lose nothing. As for saves and loads, methods are compared within rounds,
and the round is the unit; with one job a side, blocks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.measures.differences import FEWEST_ROUNDS, NOT_SIGNIFICANT, SIGNIFICANT_P
from analysis.measures.loop_statistics import Exchangeable, permutation_ps
from analysis.measures.lost import TOO_FEW_BLOCKS, BlockMeans, Tested
from analysis.measures.statistics import CONFIDENCE, Floats, Interval, difference_of, exactly

TOO_FEW_ROUNDS = "too few rounds to tell"

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class _Raw:
    """A difference before the correction."""

    interval: Interval
    p: float
    lacks: str
    """The verdict where there is too little to test."""


def lost_differences(pairs: Sequence[tuple[BlockMeans, BlockMeans]], *, shared_rounds: bool = True) -> list[Tested]:
    """Compare the first of every pair with the second; ps are corrected for all pairs (Benjamini-Hochberg).

    Args:
        pairs: lost time of two methods at one interval.
        shared_rounds: False where the sides come from two studies, whose rounds are unrelated.
    """
    raw = [_difference(first, second, shared_rounds=shared_rounds) for first, second in pairs]
    ps = [one.p for one in raw if not math.isnan(one.p)]
    corrected = iter(stats.false_discovery_control(ps) if ps else ())
    tested = [replace(one, p=one.p if math.isnan(one.p) else float(next(corrected))) for one in raw]
    return [Tested(one.interval, one.p, _verdict(one)) for one in tested]


def _verdict(raw: _Raw) -> str:
    if math.isnan(raw.interval.estimate):
        return ""
    if math.isnan(raw.p):
        return raw.lacks
    if raw.p >= SIGNIFICANT_P or not (raw.interval.low > 0 or raw.interval.high < 0):
        return NOT_SIGNIFICANT
    return "more" if raw.interval.estimate > 0 else "less"


def _difference(first: BlockMeans, second: BlockMeans, *, shared_rounds: bool) -> _Raw:
    if not (first.lost_s and second.lost_s):
        return _Raw(Interval(math.nan, math.nan, math.nan), math.nan, "")
    same_round = not shared_rounds or set(first.rounds) == set(second.rounds)
    if len(set(first.jobs)) == len(set(second.jobs)) == 1 and same_round:
        return _of_two_jobs(first, second)
    a, b = _by_round(first), _by_round(second)
    if shared_rounds:
        within = np.array([a[name] - b[name] for name in a if name in b])
        return _of_rounds(within, None) if len(within) else _unpaired(a, b)
    return _of_rounds(np.array([*a.values()]), np.array([*b.values()]))


def _by_round(means: BlockMeans) -> Mapping[str, float]:
    rounds: dict[str, list[float]] = {}
    for name, lost_s in zip(means.rounds, means.lost_s, strict=True):
        rounds.setdefault(name, []).append(lost_s)
    return {name: float(np.median(rounds[name])) for name in sorted(rounds)}


def _unpaired(a: Mapping[str, float], b: Mapping[str, float]) -> _Raw:
    estimate = float(np.mean([*a.values()]) - np.mean([*b.values()]))
    return _Raw(Interval(estimate, math.nan, math.nan), math.nan, TOO_FEW_ROUNDS)


def _of_rounds(first: Floats, second: Floats | None) -> _Raw:
    """Test differences within rounds by Student's t; two samples of rounds by Welch's."""
    sides = [first] if second is None else [first, second]
    estimate = float(first.mean() - (0.0 if second is None else second.mean()))
    least = min(map(len, sides))
    if least < 2:
        return _Raw(Interval(estimate, math.nan, math.nan), math.nan, TOO_FEW_ROUNDS)
    shares = [float(side.var(ddof=1)) / len(side) for side in sides]
    scatter_s = math.sqrt(sum(shares))
    if scatter_s <= _ROUNDING * abs(estimate):  # nothing scatters: any difference is certain
        return _Raw(exactly(estimate), float(estimate == 0) if least >= FEWEST_ROUNDS else math.nan, TOO_FEW_ROUNDS)
    parts = sum(share**2 / (len(side) - 1) for share, side in zip(shares, sides, strict=True))
    freedom = sum(shares) ** 2 / parts
    half_s = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * scatter_s
    p = float(2 * stats.t.sf(abs(estimate) / scatter_s, freedom)) if least >= FEWEST_ROUNDS else math.nan
    return _Raw(Interval(estimate, estimate - half_s, estimate + half_s), p, TOO_FEW_ROUNDS)


def _of_two_jobs(first: BlockMeans, second: BlockMeans) -> _Raw:
    """Permute the blocks of two jobs, one a side: the answer holds for these two jobs, and not for others.

    The error of a job's reference is in all of its blocks. Exchanging blocks can't show it, so the interval has to.
    """
    sides = [np.array(side.lost_s) for side in (first, second)]
    estimate = float(np.median(sides[0]) - np.median(sides[1]))
    if min(map(len, sides)) < 2:
        return _Raw(Interval(estimate, math.nan, math.nan), math.nan, TOO_FEW_BLOCKS)
    of_medians = difference_of(first.interval, second.interval)
    moved_s = estimate - of_medians.estimate  # of the means of blocks here, of saves there
    [p] = permutation_ps([Exchangeable(*(side[:, np.newaxis] for side in sides))])
    return _Raw(Interval(estimate, of_medians.low + moved_s, of_medians.high + moved_s), p, TOO_FEW_BLOCKS)
