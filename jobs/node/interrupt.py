"""Signals that end a job early — time limit, scancel, preemption — as an exception that lets it tidy up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_REASONS = {
    signal.SIGUSR2: "the time limit is near (SIGUSR2)",
    signal.SIGTERM: "cancelled or preempted (SIGTERM)",
    signal.SIGINT: "interrupted (SIGINT)",
}


class Interrupted(BaseException):
    """The job has to end now. Not an `Exception`: no strategy may take it for a failure of its own."""


@contextmanager
def interruptible(note: Callable[[str], None]) -> Iterator[None]:
    """Turn the first such signal inside into `Interrupted`, after `note` was told why; ignore the next ones.

    Ignoring them lets the tidying run to its end. Outside the main thread Python has no say, and nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            return
        told = True
        reason = _REASONS[signal.Signals(number)]
        note(reason)
        raise Interrupted(reason)

    before = {each: signal.signal(each, interrupt) for each in _REASONS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
