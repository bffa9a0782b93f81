"""The saves of a series behind a program: a copy of the state, one save in flight, and its outcome."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from ckpt.background.assisted import AssistedSaver
from ckpt.background.process import ProcessSaver
from ckpt.background.saver import BackgroundSaver
from ckpt.background.snapshot import Placed, place, size_of
from ckpt.background.thread import ThreadSaver
from ckpt.disk import room
from ckpt.errors import CheckpointError
from ckpt.series.recent import RecentSaves
from ckpt.series.saving import Blocked, Saved
from ckpt.state.layout import State, layout_of_state

Background = Literal["process", "thread", "none"]

_log = logging.getLogger("ckpt")


@dataclass(frozen=True, slots=True)
class Copy:
    """What is saved: a copy of the tensors, or the tensors themselves if there is none."""

    tensors: State
    placed: list[Placed] | None
    called_s: float
    """When copying began, by `time.perf_counter`."""
    copy_s: float


class Behind:
    """Starts saves, one after the other.

    Args:
        background: in another process, in a thread, or before `start` returns.
        together: whether the process only helps a thread, which commits with other ranks.
        copy_bytes: the most memory that the copy may take; None for as much as there is.
        prepare: called in the process before its first save; must be picklable.
        ended: called as soon as a save has ended, with its step, what it did (None if it failed), and why it failed.
            From any thread; not with an error that `start` raises.
        recent: takes in every save.

    Raises:
        CheckpointError: if there is no such way.
    """

    def __init__(
        self,
        background: Background,
        copy_bytes: int | None,
        prepare: Callable[[], Any],
        ended: Callable[[int, Saved | None, str], None],
        recent: RecentSaves,
        *,
        together: bool = False,
    ) -> None:
        self._saver = _saver(background, prepare, together=together)
        self._copy_bytes, self._ended, self._recent = copy_bytes, ended, recent
        self._running: tuple[int, Future[Any]] | None = None
        self._reported = threading.Event()
        self._done: tuple[int, Saved] | None = None

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return self._saver.helpers if self._saver else []

    def warm(self, tensors: State) -> None:
        """Start what saves, and have the memory for copies of such tensors.

        Raises:
            CheckpointError: if one of them isn't possible.
        """
        if self._saver and self._can_copy(tensors):
            self._saver.reserve(layout_of_state(tensors))
        if isinstance(self._saver, ProcessSaver):
            self._saver.warm()

    def copy(self, tensors: State) -> Copy:
        """Copy the tensors, if they are saved behind the program; the save before has been waited for.

        Raises:
            CheckpointError: if they can't be copied.
        """
        called_s = time.perf_counter()
        if self._saver is None or not self._can_copy(tensors):
            return Copy(tensors, None, called_s, 0.0)
        placed = self._saver.take(tensors)
        return Copy(tensors, placed, called_s, time.perf_counter() - called_s)

    def start(self, step: int, copy: Copy, task: Callable[..., Saved]) -> Blocked:
        """Save what was copied; returns how long that held the program.

        The task takes the tensors, and where a process helps a thread, the function that has the process do a part.

        Raises:
            CheckpointError: where nothing is saved behind the program, if the save fails.
        """
        if self._saver and copy.placed is not None:
            future = self._saver.start(copy.placed, task)
            self._running, self._reported = (step, future), threading.Event()
            future.add_done_callback(partial(self._report, step, self._reported))
            self._recent.add(step, copy.called_s, future)
            return Blocked(copy_s=copy.copy_s)
        self._done = step, (saved := task(copy.tensors))
        self._ended(step, saved, "")
        self._recent.add(step, copy.called_s)
        return Blocked(save_s=time.perf_counter() - copy.called_s)

    def wait(self) -> tuple[int, Saved] | None:
        """Wait for the save in flight; returns its step and what it did, once, and None if there was none.

        Raises:
            CheckpointError: if it failed; the message names its step.
        """
        if self._running is not None:
            step, future = self._running
            error = future.exception()  # an interrupt here leaves the save in flight
            self._reported.wait()
            self._running = None
            if error is not None:
                raise CheckpointError(_failure(step, error)) from error
            self._done = step, future.result().value
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        """End what saves, after the save in flight."""
        if self._saver:
            self._saver.close()

    def _report(self, step: int, reported: threading.Event, done: Future[Any]) -> None:
        try:
            if error := done.exception():
                self._ended(step, None, _failure(step, error))
            else:
                ended = done.result()
                self._ended(step, replace(ended.value, cpu_s=ended.cpu_s), "")
        finally:
            reported.set()

    def _can_copy(self, tensors: State) -> bool:
        if self._copy_bytes is None:
            return True
        needed_bytes = size_of(place(layout_of_state(tensors)))
        if needed_bytes <= self._copy_bytes:
            return True
        _log.warning(
            "a copy of the state takes %s, more than copy_bytes=%d: it is saved without one, and the program waits",
            room.size(needed_bytes),
            self._copy_bytes,
        )
        return False


def _failure(step: int, error: BaseException) -> str:
    text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    return f"the save of step {step} failed: {text}"


def _saver(background: str, prepare: Callable[[], Any], *, together: bool) -> BackgroundSaver | None:
    match background:
        case "process":
            return (AssistedSaver if together else ProcessSaver)(prepare)
        case "thread":
            return ThreadSaver()
        case "none":
            return None
    raise CheckpointError(f'background={background!r} isn\'t possible: "process", "thread" or "none"')
