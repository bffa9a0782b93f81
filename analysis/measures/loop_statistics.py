"""Intervals and tests for lost time: a block of steps is the unit, never a step, and the reference is unsure too.

Steps of a block share its minute, so that many steps say less than many blocks. An amount of a save is what its steps
took, minus as many medians of the reference: resamples draw the reference's blocks too, and so know its error, which
counts once per step. The test exchanges blocks with and without checkpoints within their jobs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.measures.statistics import CONFIDENCE, UNKNOWN, Floats, Interval

_RESAMPLES = 1999

_BATCH = 4_000_000
"""Values that are held at once."""

_MOST_EXCHANGES = 5_000
"""Up to so many ways to exchange blocks, all are tried; of more, as many as there are resamples are drawn."""

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Saves:
    """Amounts of the saves of one job, by block."""

    reference: Sequence[Floats]
    """Durations of the steps of every reference block, in s."""
    amounts: Floats
    """Shape (quantities, blocks, saves), in s; NaN where a block has fewer saves, or one may not be used."""
    steps: Floats
    """The same shape: how many medians of the reference an amount is above."""


def median_amounts(jobs: Sequence[Saves]) -> list[Interval]:
    """Return, per quantity, the median over all saves of all jobs, with its 95 % bootstrap interval.

    Jobs are drawn with replacement, then blocks within the drawn jobs, with checkpoints and without. With a single
    block in all, an interval's ends are NaN.
    """
    usable = [job for job in map(_without_empty_blocks, jobs) if job.amounts.shape[1] and len(job.reference)]
    quantities = jobs[0].amounts.shape[0] if jobs else 0
    if not usable:
        return [UNKNOWN] * quantities
    estimates = [float(np.nanmedian(np.concatenate([job.amounts[q].ravel() for job in usable])))
                 if any(np.isfinite(job.amounts[q]).any() for job in usable) else math.nan
                 for q in range(quantities)]  # fmt: skip
    if sum(job.amounts.shape[1] for job in usable) < 2:
        return [Interval(estimate, math.nan, math.nan) for estimate in estimates]
    draws = _Draws(usable)
    return [
        UNKNOWN if math.isnan(estimate) else Interval(estimate, *draws.ends(q)) for q, estimate in enumerate(estimates)
    ]


def _without_empty_blocks(job: Saves) -> Saves:
    kept = np.isfinite(job.amounts).any(axis=(0, 2))
    return Saves(job.reference, job.amounts[:, kept], job.steps[:, kept])


class _Draws:
    """The jobs and blocks of all resamples: the same for all quantities."""

    def __init__(self, jobs: Sequence[Saves]) -> None:
        random = np.random.default_rng(0)
        blocks, saves = (max(job.amounts.shape[axis] for job in jobs) for axis in (1, 2))
        self._amounts, self._steps = (
            np.stack([_padded(array, blocks, saves) for array in arrays], axis=1)
            for arrays in ([job.amounts for job in jobs], [job.steps for job in jobs])
        )
        counts = np.array([job.amounts.shape[1] for job in jobs])
        self._jobs = random.integers(len(jobs), size=(_RESAMPLES, len(jobs)))
        within = counts[self._jobs][..., np.newaxis]
        self._blocks = (random.random((_RESAMPLES, len(jobs), blocks)) * within).astype(np.int64)
        self._surplus = np.broadcast_to(np.arange(blocks) >= within, self._blocks.shape)
        medians = np.array([_medians_of(job.reference, random) - _median(job.reference) for job in jobs])
        rows = np.arange(_RESAMPLES)[:, np.newaxis] + 37 * np.arange(len(jobs))  # a job drawn twice: two references
        self._moved_s = medians[self._jobs, rows % _RESAMPLES]

    def ends(self, quantity: int) -> tuple[float, float]:
        """Return both ends of the interval."""
        at = self._jobs[..., np.newaxis], self._blocks
        known = self._amounts[quantity][np.isfinite(self._amounts[quantity])]
        if not self._steps[quantity][np.isfinite(self._steps[quantity])].any() and known.min() == known.max():
            return float(known[0]), float(known[0])
        amounts = self._amounts[quantity][at]
        amounts = amounts - self._steps[quantity][at] * self._moved_s[..., np.newaxis, np.newaxis]
        amounts[self._surplus] = np.nan
        medians = _medians_of_rows(amounts.reshape(_RESAMPLES, -1))
        low, high = np.percentile(medians, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        return float(low), float(high)


def _padded(array: Floats, blocks: int, saves: int) -> Floats:
    padded = np.full((array.shape[0], blocks, saves), np.nan)
    padded[:, : array.shape[1], : array.shape[2]] = array
    return padded


def _median(reference: Sequence[Floats]) -> float:
    return float(np.median(np.concatenate(reference)))


def _medians_of(reference: Sequence[Floats], random: np.random.Generator) -> Floats:
    """Return the reference's median in every resample of its blocks."""
    longest = max(map(len, reference))
    padded = np.full((len(reference), longest), np.nan)
    for row, durations in zip(padded, reference, strict=True):
        row[: len(durations)] = durations
    even = min(map(len, reference)) == longest
    drawn = random.integers(len(reference), size=(_RESAMPLES, len(reference)))
    size = max(1, _BATCH // padded.size)
    median = functools.partial(np.median, axis=1) if even else _medians_of_rows
    parts = (padded[drawn[start : start + size]] for start in range(0, _RESAMPLES, size))
    return np.concatenate([median(part.reshape(len(part), -1)) for part in parts])


def _medians_of_rows(rows: Floats) -> Floats:
    """Return the medians of rows without their NaN, faster than numpy; rows of NaN alone are left out."""
    counts = np.isfinite(rows).sum(axis=1)
    ordered, counts = np.sort(rows[counts > 0], axis=1), counts[counts > 0]
    number = np.arange(len(ordered))
    return np.asarray((ordered[number, (counts - 1) // 2] + ordered[number, counts // 2]) / 2)


@dataclass(frozen=True, slots=True)
class Exchangeable:
    """Means of the blocks of one job: shape (blocks, quantities), with checkpoints and without."""

    on: Floats
    off: Floats


def least_p(jobs: Sequence[Exchangeable]) -> float:
    """Return the least p that so many blocks can give: 2 over the number of ways to exchange them; NaN without any."""
    ways = math.prod(math.comb(len(job.on) + len(job.off), len(job.on)) for job in jobs if len(job.on) and len(job.off))
    return 2 / ways if ways > 1 else math.nan


def permutation_ps(jobs: Sequence[Exchangeable]) -> list[float]:
    """Return, per quantity, the two-sided p of the difference between blocks with and without checkpoints.

    The mean difference of the jobs is compared with what it is where blocks are exchanged within jobs. NaN where no
    result could be significant, because there are too few blocks.
    """
    usable = [job for job in jobs if len(job.on) and len(job.off)]
    quantities = jobs[0].on.shape[1] if jobs else 0
    least = least_p(usable)
    if not least <= 1 - CONFIDENCE:
        return [math.nan] * quantities
    observed = np.abs(sum((_mean_difference(job.on, job.off) for job in usable), np.zeros(quantities)))
    can_all_be_tried = least >= 2 / _MOST_EXCHANGES
    exchanged = _all_exchanges(usable) if can_all_be_tried else _drawn_exchanges(usable)
    extra = 0 if can_all_be_tried else 1  # what was observed is one of them
    reached = (np.abs(exchanged) >= observed - _ROUNDING).sum(axis=0) + extra
    return [float(p) for p in reached / (len(exchanged) + extra)]


def _mean_difference(on: Floats, off: Floats) -> Floats:
    return np.asarray(on.mean(axis=0) - off.mean(axis=0))


def _all_exchanges(jobs: Sequence[Exchangeable]) -> Floats:
    sums = np.zeros((1, jobs[0].on.shape[1]))
    for job in jobs:
        differences = np.array([_mean_difference(on, off) for on, off in _splits(job)])
        sums = (sums[:, np.newaxis] + differences).reshape(-1, sums.shape[1])
    return sums


def _splits(job: Exchangeable) -> Iterator[tuple[Floats, Floats]]:
    pooled = np.concatenate([job.on, job.off])
    for chosen in itertools.combinations(range(len(pooled)), len(job.on)):
        mask = np.zeros(len(pooled), bool)
        mask[list(chosen)] = True
        yield pooled[mask], pooled[~mask]


def _drawn_exchanges(jobs: Sequence[Exchangeable]) -> Floats:
    random = np.random.default_rng(0)
    sums = np.zeros((_RESAMPLES, jobs[0].on.shape[1]))
    for job in jobs:
        pooled, count = np.concatenate([job.on, job.off]), len(job.on)
        order: NDArray[np.int64] = random.random((_RESAMPLES, len(pooled))).argsort(axis=1)
        shuffled = pooled[order]
        sums += shuffled[:, :count].mean(axis=1) - shuffled[:, count:].mean(axis=1)
    return sums
