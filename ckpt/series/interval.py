"""How often to save: every so many steps, or as often as pays by what saves are measured to cost the loop."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median, median_low
from typing import Literal

from ckpt.errors import CheckpointError
from ckpt.series.recent import CalledSave, RecentSaves, duration

FIRST_STEPS = 10
"""Steps before a save, as long as none was measured."""

MOST_LOST = 0.1
"""The share of the time that saves may take."""

LONGEST = 0.5
"""The longest time from one save to the next, in MTBFs."""

CHANGE = 1.2
"""The interval stays as it is, unless another one by this factor is better: what is lost hardly depends on less."""

_log = logging.getLogger("ckpt")


class FixedInterval:
    """Due after steps that are multiples of a number."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def due(self, step: int, _: RecentSaves) -> bool:
        """Whether to save after this step."""
        return step % self._steps == 0


class AutomaticInterval:
    """Due as often as pays, by what recent saves cost the loop and how often the job fails.

    The lost time of a save is the time by which steps took longer than usual, from the call to the end of the step in
    which it was committed, but at least the time that the call held the program. A usual step is the median of recent
    ones beside which nothing was saved.

    Args:
        mtbf_s: mean time between failures of the whole job.
        clock: gives the time in seconds, as that of the saves.

    Attributes:
        period_s: from one call of `save` to the next; None as long as no save was measured.
    """

    def __init__(self, mtbf_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.period_s: float | None = None
        self._mtbf_s, self._clock = mtbf_s, clock
        self._usual_s: deque[float] = deque(maxlen=50)  # steps
        self._lost_s: deque[float] = deque(maxlen=5)
        self._step: int | None = None
        self._step_end_s = 0.0
        self._is_due = False
        self._last: CalledSave | None = None  # the save that was called last
        self._measured: CalledSave | None = None  # the last one whose lost time is known
        self._excess_s = 0.0  # of the steps since the last call
        self._steps_since = 0  # that call, or the program's start

    def due(self, step: int, saves: RecentSaves) -> bool:
        """Whether to save after this step, which has just ended; a second call for a step changes nothing."""
        if step != self._step:
            now_s = self._clock()
            if self._step is not None:
                self._measure(now_s - self._step_end_s, saves)
            self._step, self._step_end_s = step, now_s
            self._steps_since += 1
            self._is_due = self._is_time(now_s, saves.last)
        return self._is_due

    def _is_time(self, now_s: float, last: CalledSave | None) -> bool:
        if last is not self._measured:  # it is in flight
            return False
        if self.period_s is None or last is None:
            return self._steps_since >= FIRST_STEPS
        return now_s - last.call_s >= self.period_s

    def _measure(self, step_s: float, saves: RecentSaves) -> None:
        """Count a step as a usual one, or as one that a save may have made longer."""
        last = saves.last
        if last is None or last is self._measured:
            self._usual_s.append(step_s)
            return
        if last is not self._last:
            self._last, self._excess_s, self._steps_since = last, 0.0, 0
        self._excess_s += step_s - (median(self._usual_s) if self._usual_s else step_s)
        if last.is_in_flight:
            return
        self._measured = last
        if last.latency_s is not None:
            self._lost_s.append(max(self._excess_s, last.held_s))
            self._adopt(saves.commit_s)

    def _adopt(self, commit_s: float | None) -> None:
        """Take the best period, and log why, if it differs enough."""
        assert commit_s is not None  # a save was committed
        # The first save starts a process, and costs more: the lower of two, so that it counts until there is a second.
        lost_s = median_low(self._lost_s)
        period_s, before_s = best_period_s(lost_s, commit_s, self._mtbf_s), self.period_s
        if before_s is not None and before_s <= period_s * CHANGE and period_s <= before_s * CHANGE:
            return
        self.period_s = period_s
        step_s = median(self._usual_s) if self._usual_s else 0.0
        _log.info(
            "saving every %s%s%s: a save loses %s and is committed within %s, MTBF %s",
            duration(period_s),
            f" (about {max(1, round(period_s / step_s))} steps)" if step_s else "",
            "" if before_s is None else f" instead of {duration(before_s)}",
            duration(lost_s),
            duration(commit_s),
            duration(self._mtbf_s),
        )


def chosen(every: int | Literal["auto"], mtbf_s: float | None) -> FixedInterval | AutomaticInterval:
    """The interval that a program asks for.

    Raises:
        CheckpointError: if there is none such.
    """
    if every == "auto":
        if mtbf_s is None:
            raise CheckpointError(
                'every="auto" needs mtbf_s, the seconds from one failure of the whole job to the next on average: '
                'Checkpointer(…, every="auto", mtbf_s=8 * 3600), for example'
            )
        if not 0 < mtbf_s < math.inf:
            raise CheckpointError(f"mtbf_s={mtbf_s} isn't possible: seconds, more than 0")
        return AutomaticInterval(mtbf_s)
    if not isinstance(every, int) or every < 1:
        raise CheckpointError(f'every={every!r} isn\'t possible: a number of steps, 1 or more, or "auto"')
    if mtbf_s is not None:
        raise CheckpointError(f'mtbf_s={mtbf_s} has no effect with every={every}: leave it out, or set every="auto"')
    return FixedInterval(every)


def best_period_s(lost_s: float, latency_s: float, mtbf_s: float) -> float:
    """Return the seconds from one call of `save` to the next that lose least, within bounds.

    They are Daly's interval of computing, and the lost time. Saves take at most `MOST_LOST` of the time, unless there
    were more than `LONGEST` MTBFs from one to the next then; and none waits for the one before.

    Source: J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
    Computer Systems 22 (3), 2006, equation 37.

    Args:
        lost_s: what a save costs the loop, 0 or more.
        latency_s: from the call of a save until it is committed.
        mtbf_s: mean time between failures of the whole job, more than 0.
    """
    root = math.sqrt(lost_s / (2 * mtbf_s))
    daly_s = 2 * mtbf_s * (root + root**2 / 3 + root**3 / 9)
    return max(min(max(daly_s, lost_s / MOST_LOST), LONGEST * mtbf_s), latency_s)
