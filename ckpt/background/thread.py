"""Saves in a thread of the program, which shares the interpreter's lock with everything else in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ckpt import threads
from ckpt.background.saver import BackgroundSaver, Done
from ckpt.background.snapshot import Placed, tensors_in
from ckpt.state.layout import State


class ThreadSaver(BackgroundSaver):
    """Calls every task in a new thread of this process. A program that ends waits for it."""

    def _start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        memory = self._memory.mapped
        assert memory is not None  # the snapshot lies in it
        # The CPU time of the strategy's own threads is not known apart from the program's.
        return threads.start(lambda: Done(task(tensors_in(memory, snapshot)), math.nan), "checkpoint")
