"""Ends a training loop before the batch system ends the job, with one more checkpoint if there is time for it."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, Self

from ckpt.errors import CheckpointError
from ckpt.series.recent import RecentSaves, duration

_log = logging.getLogger("ckpt")


class Preemption:
    """Ends a training loop after a signal of the batch system, with one more checkpoint if there is time for it.

        with (
            ckpt.Preemption({signal.SIGUSR2: 120, signal.SIGTERM: 30}) as preemption,
            ckpt.Checkpointer("run", every=500, preemption=preemption) as checkpoints,
        ):
            for step in range(first, last + 1):
                ...
                if checkpoints.due(step):
                    checkpoints.save(step, state())
                if preemption.should_stop:
                    break

    The first call of `due` after a signal is true if a save fits in the time that is left, by the longest of the recent
    ones; as long as none was measured, a save is tried. A warning in the log names the last checkpoint and the reason.
    From then on, `should_stop` is true, and `due` is false.

    The signals are handled within the `with` block, which must be in the program's main thread. A handler that the
    program had for a signal is called as well.

    Args:
        grace_s: the signals, and the seconds from a signal until the job is killed.

    Raises:
        CheckpointError: if a signal can't be handled, or a time isn't positive.
    """

    def __init__(self, grace_s: Mapping[signal.Signals, float]) -> None:
        handled = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
        if not grace_s or grace_s.keys() - handled or not all(0 < value < math.inf for value in grace_s.values()):
            raise CheckpointError(
                f"Preemption({dict(grace_s)}) isn't possible: it takes signals that a program can handle, and the "
                "seconds from a signal until the job is killed: Preemption({signal.SIGUSR2: 120}), for example"
            )
        self._grace_s = {int(number): value for number, value in grace_s.items()}
        self._before: dict[int, Any] = {}  # the handlers
        self._announced = ""  # the signal's name
        self._end_s = math.inf  # when the job is killed
        self._decided: tuple[int, bool] | None = None  # after which step, and whether it is saved

    def __enter__(self) -> Self:
        """Handle the signals.

        Raises:
            CheckpointError: outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise CheckpointError(
                "Preemption can't handle signals in this thread: Python does so in the main thread only. Begin its "
                "`with` block there, and give the object to the thread that trains"
            )
        for number in self._grace_s:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers that the program had."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it wasn't set from Python, and can't be restored
        self._before.clear()

    @property
    def came(self) -> bool:
        """Whether a signal has come."""
        return bool(self._announced)

    @property
    def should_stop(self) -> bool:
        """Whether the loop should end: a signal has come, and `due` has decided on the last save."""
        return self._decided is not None

    def decide(self, step: int, saves: RecentSaves) -> bool:
        """Whether to save after this step, as a signal has come: decided and logged once, for `Checkpointer.due`."""
        if self._decided is None:
            self._decided = step, self._fits(step, saves)
        return self._decided == (step, True)

    def _fits(self, step: int, saves: RecentSaves) -> bool:
        left_s = max(0.0, self._end_s - time.monotonic())
        in_flight, committed, commit_s = saves.in_flight, saves.committed, saves.commit_s
        if commit_s is None:  # to try costs nothing: a save that isn't finished leaves the checkpoint before as it is
            fits = in_flight is None and left_s > 0
            reason = "no save was measured yet"
        else:
            needed_s = commit_s if in_flight is None else 2 * commit_s
            fits = needed_s <= left_s
            reason = f"{'a save takes' if in_flight is None else 'two saves take'} up to {duration(needed_s)}"
        if fits:
            last = "which is saved" if in_flight is None else f"which is saved after step {in_flight.step}"
        elif in_flight is not None:
            last = f"and step {in_flight.step}, which is being saved, is the last checkpoint"
        else:
            last = "which is not saved" if committed is None else f"and step {committed.step} stays the last checkpoint"
        text = f"training stops after step {step}, {last}: {reason}, and {duration(left_s)} are left"
        _log.warning("%s: %s", self._announced, text)
        return fits

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note when the job will be killed, and no more: this interrupts the program anywhere."""
        end_s = time.monotonic() + self._grace_s[number]
        if end_s < self._end_s:
            self._end_s, self._announced = end_s, signal.Signals(number).name
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
