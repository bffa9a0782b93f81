"""What saves behind a program have in common: snapshot, start, wait; one save at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from ckpt.background.snapshot import Placed, SnapshotMemory
from ckpt.errors import CheckpointError
from ckpt.state.layout import State

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """What a task behind the program returned, and the CPU time that it took; NaN where that can't be known."""

    value: Any
    cpu_s: float


class BackgroundSaver(ABC):
    """Calls a task with a snapshot of a state, while the program goes on changing the state.

        saver.reserve(state_bytes)       # before the program starts, so that the first snapshot waits for no page
        future = saver.start(saver.take(state), task)
        ...
        future.result()                  # before the next `take`, which overwrites the snapshot

    The task takes the state that was copied, and what it raises is raised by `result()`.
    """

    def __init__(self) -> None:
        self._memory = SnapshotMemory()
        self._running: Future[Done] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, size_bytes: int) -> None:
        """Have memory for snapshots of that size, before the first one.

        Raises:
            OSError: if there isn't so much.
        """
        self._memory.reserve(size_bytes)

    def take(self, state: State) -> list[Placed]:
        """Copy the state. It may change as soon as this returns.

        Raises:
            CheckpointError: if the save before is still running: it uses the memory.
        """
        if self._running is not None and not self._running.done():
            raise CheckpointError("a save is still running, and its snapshot in use: wait for it before the next one")
        return self._memory.take(state)

    def start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        """Call the task with the snapshot behind the program; returns at once."""
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
        if self._running is not None:
            self._running.exception()
        self._memory.close()
