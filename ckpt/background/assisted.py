"""Saves in a thread of the program, which lets a process do most of the work: for ranks that commit together.

Their process group can't be used in another process; writing a rank's files needs no group, and takes most of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ckpt import threads
from ckpt.background.process import ProcessSaver
from ckpt.background.saver import Done
from ckpt.background.snapshot import Placed, tensors_in
from ckpt.state.layout import State


class AssistedSaver(ProcessSaver):
    """Calls tasks in a new thread of this process, with the copy and `apart`. A program that ends waits for it.

    `apart(function)` calls a function with the copy in the process that helps, and returns what it returned; both must
    be picklable. The CPU time is that process's.
    """

    def _start(self, snapshot: list[Placed], task: Callable[..., Any]) -> Future[Done]:
        memory = self._memory.mapped
        assert memory is not None  # the snapshot lies in it
        cpu_s = 0.0

        def apart(function: Callable[[State], Any]) -> Any:
            nonlocal cpu_s
            done = self._call(self._message(snapshot, function))
            cpu_s += done.cpu_s
            return done.value

        def work() -> Done:
            value = task(tensors_in(memory, snapshot), apart)
            return Done(value, cpu_s)

        return threads.start(work, "checkpoint")
