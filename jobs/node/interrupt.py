"""Signals that end a job early — time limit, scancel, preemption — as an exception that lets it clean up."""

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
    """Turn the first such signal into `Interrupted`, after a call of `note` with the reason; ignore the next ones.

    Ignoring them lets the clean-up finish. Outside the main thread, where Python can't handle signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            return
        interrupted = True
        reason = _REASONS[signal.Signals(number)]
        note(reason)
        raise Interrupted(reason)

    before = {number: signal.signal(number, interrupt) for number in _REASONS}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REASONS)  # whoever started the job may have held them back
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
