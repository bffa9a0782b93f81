"""Computes how often to checkpoint, and what checkpoints and failures cost: Young and Daly, with a commit latency.

The model: failures come at random and independently, on average one per `mtbf_s` (M) of the whole job. The job computes
for `interval_s` (τ) between two saves and loses `lost_s` (C) to a save: it stands still, or runs slower while the save
goes on behind it. A checkpoint can be restored from `latency_s` (D) after the call of its save, and the next save waits
for that. At a failure the job goes back to the newest such checkpoint, restarts, which takes `restart_s` (R), and may
fail again while it saves, restarts or recomputes.

Between the commits of two checkpoints lie τ + C; where saves wait, C has the wait, and that is D. From a failure to the
next commit lie R + τ + D if nothing else fails, and M (exp((R + τ + D) / M) - 1) on average. So a checkpoint's progress
τ takes, on average,

    M (1 - exp(-(τ + C) / M)) exp((R + τ + D) / M) = M exp((R + D - C) / M) (exp((τ + C) / M) - 1)

For a save that holds the job until it is committed (D = C), that is Daly's equation 20. A later commit is a factor
exp((D - C) / M), whatever the interval: the best interval is Daly's for the lost time alone, unless that is so short
that saves wait for one another.

Sources:
    J. W. Young, A first order approximation to the optimum checkpoint interval, Communications of the ACM 17 (9), 1974.
    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation Computer
    Systems 22 (3), 2006: the expected wall time is its equation 20, the interval its equation 37.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.advice.ranges import POSITIVE, check_range


@dataclass(frozen=True, slots=True)
class Loss:
    """Shares of the machine's time, from 0 to 1."""

    checkpoints: float
    """Lost to checkpoints of work that was kept."""
    failures: float
    """Work done twice, checkpoints of it, and restarts."""

    @property
    def total(self) -> float:
        """The share of the time that isn't progress."""
        return self.checkpoints + self.failures


UNKNOWN_LOSS = Loss(math.nan, math.nan)


def young_interval_s(lost_s: float, mtbf_s: float) -> float:
    """Return the seconds of computing between two checkpoints that lose least, to first order: sqrt(2 C M).

    Good where the lost time is far shorter than the MTBF. NaN where an input is unknown.

    Raises:
        ResultsError: if the lost time is negative, the MTBF isn't positive, or one isn't finite.
    """
    _check(0, lost_s=lost_s)
    _check(POSITIVE, mtbf_s=mtbf_s)
    return math.sqrt(2 * lost_s * mtbf_s)


def daly_interval_s(lost_s: float, mtbf_s: float) -> float:
    """Return the seconds of computing between two checkpoints that lose least: Daly's series; M from C = 2 M on.

    NaN where an input is unknown.

    Raises:
        ResultsError: if the lost time is negative, the MTBF isn't positive, or one isn't finite.
    """
    young_s = young_interval_s(lost_s, mtbf_s)
    if lost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = lost_s / (2 * mtbf_s)
    return young_s * (1 + math.sqrt(ratio) / 3 + ratio / 9) - lost_s


def best_interval_s(lost_s: float, latency_s: float, mtbf_s: float) -> float:
    """Return the seconds of computing between two saves that lose least: Daly's, or so many that no save waits.

    NaN where an input is unknown.

    Raises:
        ResultsError: if the lost time or the latency is negative, the MTBF isn't positive, or one isn't finite.
    """
    _check(0, latency_s=latency_s)
    daly_s = daly_interval_s(lost_s, mtbf_s)
    return math.nan if math.isnan(latency_s) else max(daly_s, latency_s - lost_s)


def loss(interval_s: float, lost_s: float, restart_s: float, mtbf_s: float, *, latency_s: float | None = None) -> Loss:
    """Return the share of the machine that checkpoints and failures take, by the expected time of the model above.

    Args:
        interval_s: τ, seconds of computing between two saves.
        lost_s: C, seconds that a save costs the job.
        restart_s: R, seconds from a failure until the job computes again.
        mtbf_s: M, mean time between failures of the whole job.
        latency_s: D, seconds from the call of a save until a restart can use it; None for a save that holds the job
            until then, D = C. What a save waits for the one before counts as lost to checkpoints.

    Raises:
        ResultsError: if the interval or the MTBF isn't positive, another time is negative, or one isn't finite.
    """
    latency_s = lost_s if latency_s is None else latency_s
    _check(POSITIVE, interval_s=interval_s, mtbf_s=mtbf_s)
    _check(0, lost_s=lost_s, restart_s=restart_s, latency_s=latency_s)
    if any(map(math.isnan, (interval_s, lost_s, restart_s, mtbf_s, latency_s))):
        return UNKNOWN_LOSS
    lost_s = max(lost_s, latency_s - interval_s)  # with the wait
    exponents = ((restart_s + latency_s - lost_s) / mtbf_s, (interval_s + lost_s) / mtbf_s)
    if sum(exponents) > 700:  # exp would overflow: no progress to speak of
        return Loss(0.0, 1.0)
    progress = interval_s / (mtbf_s * math.exp(exponents[0]) * math.expm1(exponents[1]))
    checkpoints = progress * lost_s / interval_s
    return Loss(checkpoints, max(0.0, 1 - progress - checkpoints))


def _check(least: float, **times_s: float) -> None:
    """Refuse times out of range; an unknown one, NaN, passes."""
    for name, value in times_s.items():
        if not math.isnan(value):
            check_range(f"{name} is", value, least)
