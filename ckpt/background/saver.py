"""What saves behind a program have in common: snapshot, start, wait; one save at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from ckpt.background.snapshot import Placed, SnapshotMemory
from ckpt.errors import CheckpointError
from ckpt.state.layout import Layout, State


@dataclass(frozen=True, slots=True)
class Done:
    """What a task behind the program returned, and the CPU time that it took; NaN where that can't be known."""

    value: Any
    cpu_s: float


class BackgroundSaver(ABC):
    """Calls a task with a copy of a state, while the program goes on changing the state.

        with ThreadSaver() as saver:
            saver.reserve(layout_of_state(state))     # before the training starts: the first copy is as fast as others
            future = saver.start(saver.take(state), partial(ckpt.save, directory="latest"))
            ...                                       # the state may change
            future.result()                           # before the next `take`, which overwrites the copy

    The task gets the state as it was when `take` was called, and what it raises, `result()` raises. An instance is for
    one thread of the program at a time.
    """

    def __init__(self) -> None:
        self._memory = SnapshotMemory()
        self._running: Future[Done] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, layout: Layout) -> None:
        """Have the memory for copies of such a state, and all its pages, before the first one.

        Raises:
            CheckpointError: if there isn't so much.
        """
        self._memory.reserve(layout)

    def take(self, state: State) -> list[Placed]:
        """Copy a state, from any device; it may change as soon as this returns, and not before.

        Raises:
            CheckpointError: if the save before is still running, which uses the memory; if there is too little of it;
                or if a tensor can't be stored.
        """
        self._refuse_a_second()
        return self._memory.take(state)

    def start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        """Call the task with what was copied last, behind the program; returns at once.

        Raises:
            CheckpointError: if the save before is still running; in a ProcessSaver, if the task can't be sent.
        """
        self._refuse_a_second()
        self._running = self._start(snapshot, task)
        return self._running

    @abstractmethod
    def _start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        """Start a task."""

    @property
    def helpers(self) -> list[int]:
        """The numbers of the processes that save."""
        return []

    def close(self) -> None:
        """Wait for the save that is running, whose error `result()` of its future still raises; then give all back."""
        try:
            if self._running is not None:
                self._running.exception()
        finally:
            self._memory.close()

    def _refuse_a_second(self) -> None:
        if self._running is not None and not self._running.done():
            raise CheckpointError("a save is still running and uses the copy of the state: wait for its result() first")
