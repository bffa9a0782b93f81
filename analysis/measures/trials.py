"""Holds the trials of one operation: durations with their jobs and rounds, their median and rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from analysis.measures.statistics import Interval, median_interval


@dataclass(frozen=True, slots=True)
class Trials:
    """The valid measured trials of one operation, of all ranks together, in the order of time."""

    durations_s: tuple[float, ...] = ()
    jobs: tuple[str, ...] = ()
    """The jobs of the trials."""
    rounds: tuple[str, ...] = ()
    """The rounds of the trials; empty where every job is a separate round."""
    started_s: tuple[float, ...] = ()
    """The starts of the trials, in seconds since 1970; may be empty."""
    moved_bytes: float = math.nan
    """How much a trial moved: the state, or more where every rank loads all of it."""
    invalid: int = 0
    """How many more trials were measured, and may not be used."""

    def __len__(self) -> int:
        return len(self.durations_s)

    @property
    def median_s(self) -> float:
        """The median duration; NaN without a valid trial."""
        return float(np.median(self.durations_s)) if self.durations_s else math.nan

    def median(self) -> Interval:
        """Return the median duration in s, with its 95 % bootstrap interval; NaN where the trials support none."""
        return _median(self.durations_s, self.jobs)

    def gbps(self) -> Interval:
        """Return the rate at the median, with its interval: GB/s, with GB = 1e9 bytes; NaN without a time."""
        median = self.median()
        ends = (median.estimate, median.high, median.low)
        return Interval(*(self.moved_bytes / end / 1e9 if end > 0 else math.nan for end in ends))


NO_TRIALS = Trials()


@lru_cache(maxsize=4096)
def _median(durations_s: tuple[float, ...], jobs: tuple[str, ...]) -> Interval:
    return median_interval(durations_s, jobs)  # two thousand resamples, and every table and figure asks for it
