"""Saves in a thread of the program, which shares the interpreter's lock with everything else in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ckpt.background.saver import BackgroundSaver, Done
from ckpt.background.snapshot import Placed, tensors_in
from ckpt.state.layout import State
from ckpt.threads import Beside


class ThreadSaver(BackgroundSaver):
    """Calls tasks in one thread of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = Beside()

    def _start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        memory = self._memory.memory
        assert memory is not None  # the snapshot lies in it

        def work() -> Done:
            # The strategy's own threads can't be told from the program's, so their CPU time isn't known.
            return Done(task(tensors_in(memory, snapshot)), math.nan)

        return self._thread.submit(work)

    def close(self) -> None:
        """Wait for the save that is running; then end the thread."""
        super().close()
        self._thread.__exit__()
