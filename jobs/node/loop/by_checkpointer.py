"""Saves as a user's training loop does: by the library's `Checkpointer`, with its manifest, checksums and `latest`."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from ckpt import checkpoint
from ckpt.background.saver import Done
from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from ckpt.series import steps
from ckpt.series.local import Local
from ckpt.series.saving import Outcome
from ckpt.state.layout import State
from jobs.node import committing
from jobs.node.loop import saving
from jobs.node.loop.saving import Committed
from jobs.node.loop.ways import Call, Way
from jobs.node.proof import Proof
from jobs.node.subject import Subject

_NAME = "series"
"""The series' directory in the job's."""


class ByCheckpointer(Way):
    """Copies the state, and saves the copy in a process; where there are two levels, a thread copies it to the second.

    Args:
        subject: what is saved, by a single rank.
        proof: what can be proven of the directory in which saves are committed.
        directory: the job's on its target.
        shared: the job's on the target to which its own drains; None if there is one level.
        drain_bytes_per_s: the most that draining may take; 0 for no limit.
        keep: how many checkpoints a block has, which stay until they are compared.
    """

    def __init__(
        self,
        subject: Subject,
        proof: Proof,
        directory: Path,
        shared: Path | None,
        *,
        drain_bytes_per_s: float,
        keep: int,
    ) -> None:
        super().__init__(subject)
        self._proof = proof
        self._first = directory / _NAME
        self._second = shared / _NAME if shared else None
        local = Local(self._first, keep=keep, drain_bytes_per_s=drain_bytes_per_s) if shared else None
        strategy = subject.strategy
        self._checkpoints = Checkpointer(
            self._second or self._first, local=local, ended=self._take, strategy=strategy.name, **strategy.options
        )
        self._calls: list[Call] = []

    @property
    def is_pending(self) -> bool:
        """Whether a save, or a copy to the second level, is under way."""
        return super().is_pending or self._checkpoints.is_copying

    def load(self, _: Subject, checkpoint_path: Path) -> State:
        """Load a checkpoint as a restart does."""
        state: State = checkpoint.load(checkpoint_path)
        return state

    def _call(self, call: Call) -> None:
        start_s, step = time.perf_counter(), len(self._calls)
        call.checkpoint = steps.path_of(self._first, step)
        if self._second:
            call.copy, call.drained = steps.path_of(self._second, step), Committed(problem="its turn did not come")
        self._calls.append(call)
        try:
            call.snapshot_s = self._checkpoints.save(step, self._subject.state).copy_s
        except Exception as error:  # noqa: BLE001  # whatever is raised, the log has it
            if not call.ended.done():
                call.ended.set_result(Done(saving.failed(self._subject, self._first, error), math.nan))
        call.call_s = time.perf_counter() - start_s - call.snapshot_s

    def _take(self, outcome: Outcome) -> None:
        """Take how a save or a copy ended, in the thread in which it did."""
        call = self._calls[outcome.step]
        if outcome.directory != self._first:
            call.drained = Committed(outcome.committed_s, problem=outcome.problem)
            return
        dirty, problem = None, outcome.problem
        if not problem:
            try:
                problem, dirty = committing.unwritten(self._subject, call.checkpoint, call.checkpoint, [], self._proof)
            except Exception as error:  # noqa: BLE001  # the loop waits for the end of the save
                problem = f"its pages can't be counted ({type(error).__name__}: {error})"
        # The copy to a second level takes CPU time in threads of the loop's process, which isn't known apart.
        cpu_s = math.nan if self._second else outcome.cpu_s
        call.ended.set_result(Done(Committed(outcome.committed_s, dirty, problem), cpu_s))

    def abandon(self, reason: str) -> None:
        """End the process that saves, and copying."""
        for process in self._checkpoints.helpers if self.is_pending else ():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._checkpoints.abandon_copies()
        super().abandon(reason)

    def close(self) -> None:
        """Wait for what is under way, and end the process; the log has the errors of saves and copies."""
        with suppress(CheckpointError):
            self._checkpoints.close()
        with suppress(CheckpointError):  # after a save that failed, `close` waits for no copy
            self._checkpoints.wait()
        super().close()
