"""The saves that a program called last: how long they held it, and how long they took until they were committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_COUNT = 5


class CalledSave:
    """A save that was called, and may be in flight.

    Args:
        step: the checkpoint's.
        call_s: when it was called, by the clock, after what it waited for the save before.
        future: of the save; done once the checkpoint is committed or has failed.
        clock: gives the time in seconds.

    Attributes:
        held_s: how long the call has held the program.
    """

    def __init__(self, step: int, call_s: float, future: Future[Any], clock: Callable[[], float]) -> None:
        self.step, self.call_s, self.held_s = step, call_s, clock() - call_s
        self._future, self._clock = future, clock
        self._end_s: float | None = None
        future.add_done_callback(self._end)

    @property
    def is_in_flight(self) -> bool:
        """Whether it hasn't ended."""
        return not self._future.done()

    @property
    def latency_s(self) -> float | None:
        """From the call until it was committed; None if it isn't, or failed."""
        if self.is_in_flight or self._future.exception() is not None:
            return None
        return self._end(self._future) - self.call_s

    def _end(self, _: Future[Any]) -> float:
        if self._end_s is None:  # whoever waited for the future may ask before it has called this
            self._end_s = self._clock()
        return self._end_s


class RecentSaves:
    """The last saves of a program, the newest last.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._saves: deque[CalledSave] = deque(maxlen=_COUNT)

    def add(self, step: int, call_s: float, future: Future[Any] | None = None) -> None:
        """Take in a save whose call is about to return.

        Args:
            step: the checkpoint's.
            call_s: when it was called, after what it waited for the save before.
            future: of a save behind the program; None for one that is committed.
        """
        if future is None:
            future = Future()
            future.set_result(None)
        self._saves.append(CalledSave(step, call_s, future, self._clock))

    @property
    def last(self) -> CalledSave | None:
        """The one that was called last; None before the first."""
        return self._saves[-1] if self._saves else None

    @property
    def in_flight(self) -> CalledSave | None:
        """The one that hasn't ended; None if there is none."""
        return self.last if self.last is not None and self.last.is_in_flight else None

    @property
    def committed(self) -> CalledSave | None:
        """The newest that is committed; None if there is none."""
        return next((save for save in reversed(self._saves) if save.latency_s is not None), None)

    @property
    def commit_s(self) -> float | None:
        """The longest latency of them; None as long as none is committed."""
        return max((save.latency_s for save in self._saves if save.latency_s is not None), default=None)


def duration(seconds: float) -> str:
    """A duration for a message: "1.2 s", "90 min", "6 h"."""
    if seconds < 600:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.3g} h"
