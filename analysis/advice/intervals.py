"""Computes how often to checkpoint, and what checkpoints and failures cost: the models of Young and Daly, as functions.

The model: failures come at random and independently, on average one per `mtbf_s` of the whole job; the job computes for
`interval_s`, stands still for `stall_s` while it saves, and repeats. At a failure it loses what it did since the last
checkpoint, restarts, which takes `restart_s`, and may fail again while it saves, restarts or recomputes.

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
    """Standing still for checkpoints, of work that was kept."""
    failures: float
    """Work done twice, checkpoints of it, and restarts."""

    @property
    def total(self) -> float:
        """The share of the time that isn't progress."""
        return self.checkpoints + self.failures


def young_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return the seconds of computing between two checkpoints that lose least, to first order: sqrt(2 C M).

    Good where the stall is far shorter than the MTBF. NaN where an input is unknown.

    Raises:
        ResultsError: if a time isn't positive and finite.
    """
    _check(POSITIVE, stall_s=stall_s, mtbf_s=mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s)


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return the seconds of computing between two checkpoints that lose least: Daly's series; M from C = 2 M on.

    NaN where an input is unknown.

    Raises:
        ResultsError: if a time isn't positive and finite.
    """
    _check(POSITIVE, stall_s=stall_s, mtbf_s=mtbf_s)
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def loss(interval_s: float, stall_s: float, restart_s: float, mtbf_s: float, *, behind_s: float = 0.0) -> Loss:
    """Return the share of the machine that checkpoints and failures take, by Daly's expected wall time.

    A second of progress takes M exp(R / M) (exp((interval + C) / M) - 1) / interval seconds in all.

    Args:
        interval_s: seconds of computing between two checkpoints.
        stall_s: C, seconds for which a checkpoint stops the job.
        restart_s: R, seconds from a failure until the job computes again.
        mtbf_s: M, mean time between failures of the whole job.
        behind_s: seconds after the stall until the checkpoint is safe, if the job computes meanwhile. A failure then
            loses that much more work on average, since the last safe checkpoint is that much older. The loss counts
            as part of the restart, which is exact to first order in (interval + C) / M.

    Raises:
        ResultsError: if a time isn't positive (for the restart and `behind_s`: is negative) or not finite.
    """
    _check(POSITIVE, interval_s=interval_s, stall_s=stall_s, mtbf_s=mtbf_s)
    _check(0, restart_s=restart_s, behind_s=behind_s)
    if any(map(math.isnan, (interval_s, stall_s, restart_s, mtbf_s, behind_s))):
        return Loss(math.nan, math.nan)
    exponents = ((restart_s + behind_s) / mtbf_s, (interval_s + stall_s) / mtbf_s)
    if sum(exponents) > 700:  # exp would overflow: no progress to speak of
        return Loss(0.0, 1.0)
    progress = interval_s / (mtbf_s * math.exp(exponents[0]) * math.expm1(exponents[1]))
    checkpoints = progress * stall_s / interval_s
    return Loss(checkpoints, max(0.0, 1 - progress - checkpoints))


def _check(least: float, **times_s: float) -> None:
    """Refuse times out of range; an unknown one, NaN, passes."""
    for name, value in times_s.items():
        if not math.isnan(value):
            check_range(f"{name} is", value, least)
