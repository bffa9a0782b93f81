"""After a block: its checkpoints compared with the state at its call, which follows from the state now."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ckpt.errors import LostRankError
from ckpt.state.compare import first_difference, poison
from jobs.node.context import JobContext
from jobs.node.loop.update import update
from jobs.node.loop.ways import Call, Way
from jobs.node.recorder import DIFFERS
from jobs.node.subject import Subject
from jobs.node.verifying import not_its_own
from jobs.timing_log import LoopSave


@dataclass(frozen=True, slots=True)
class Saved:
    """A save of a block, with what is needed to compare it."""

    number: int
    step: int
    call: Call
    updates: int
    """Of the state, before the call."""


class Comparison:
    """Compares the checkpoints of one block, in their order; every rank does.

    Args:
        subject: whose state was saved.
        way: how it was saved.
        context: of the job.
        updates: of the state, until now.
        failed_writes: what the kernel failed to write in the block, empty if nothing.
        problem: what failed in the block: then nothing is compared, for it takes all ranks to load.

    Attributes:
        problem: what failed in the block, on any rank, or while loading.
    """

    def __init__(
        self, subject: Subject, way: Way | None, context: JobContext, updates: int, failed_writes: str, problem: str
    ) -> None:
        self._subject, self._way, self._context, self._updates = subject, way, context, updates
        self._failed_writes = failed_writes
        self.problem = problem

    def row(self, block: int, saved: Saved) -> LoopSave:
        """A save's row, with what is wrong with its checkpoint."""
        call, committed = saved.call, saved.call.committed
        reason = committed.problem if math.isnan(committed.at_s) else self._wrong(saved)
        return LoopSave(
            block=block,
            save=saved.number,
            rank=self._context.groups.process.rank,
            step=saved.step,
            start_s=self._context.clock.at(call.called_s),
            wait_s=call.wait_s,
            snapshot_s=call.snapshot_s,
            call_s=call.call_s,
            update_wait_s=call.update_wait_s,
            commit_s=committed.at_s - call.called_s,
            state_bytes=self._subject.saved_bytes,
            durability=self._context.proof.committed,
            dirty_pages=-1 if committed.dirty_pages is None else committed.dirty_pages,
            cpu_s=call.cpu_s,
            synced_s=committed.synced_s - call.called_s,
            drained_s=call.drained.at_s - call.called_s if call.drained else math.nan,
            drain_problem=call.drained.problem if call.drained else "",
            valid=not reason,
            reason=reason,
        )

    def _wrong(self, saved: Saved) -> str:
        """What is wrong with a committed checkpoint; empty if nothing."""
        if self.problem:
            return f"not compared with the state: {self.problem}"
        try:
            differs = self._difference(saved, saved.call.checkpoint) or self._difference_of_copy(saved)
        except LostRankError as error:
            differs = self.problem = str(error)
        return differs or saved.call.committed.problem or self._failed_writes

    def _difference_of_copy(self, saved: Saved) -> str:
        call = saved.call
        if call.copy is None or call.drained is None or math.isnan(call.drained.at_s):
            return ""
        differs = self._difference(saved, call.copy)
        return differs and f"on the second level, {differs}"

    def _difference(self, saved: Saved, checkpoint: Path) -> str:
        state = self._subject.state
        assert self._way is not None  # it saved
        try:
            loaded = self._way.load(self._subject, checkpoint)
            if wrong := not_its_own(state, loaded):
                return wrong
            update(loaded, self._updates - saved.updates)
            mismatch = first_difference(self._subject.expected, loaded)
            poison(loaded)
        except LostRankError:
            raise
        except Exception as error:  # noqa: BLE001  # a strategy may raise, or return, anything
            return f"{DIFFERS}: it can't be loaded ({type(error).__name__}: {error})"
        return f"{DIFFERS}: {mismatch}" if mismatch else ""
