"""Intervals from samples, by scipy's bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

_RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the interval that the samples support, at the confidence above."""

    estimate: float
    low: float
    high: float


def ratio_of_medians(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """How many times larger the median of the first samples is, with its bootstrap interval.

    With fewer than two samples on a side there is no interval: its ends are NaN.
    """
    above, below = np.asarray(numerator, float), np.asarray(denominator, float)
    estimate = float(np.median(above) / np.median(below)) if len(above) and len(below) else float("nan")
    if min(len(above), len(below)) < 2:
        return Interval(estimate, float("nan"), float("nan"))

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    found = stats.bootstrap(
        (above, below), ratio, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, method="percentile", rng=0
    )
    return Interval(estimate, float(found.confidence_interval.low), float(found.confidence_interval.high))
