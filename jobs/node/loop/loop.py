"""The loop: blocks of steps with checkpoints off and on, every step of every rank in the log.

    a step:   save (if it is due) │ work │ wait for copies │ update of the state │ collective
              ◄──────────────── from the end of an update to the end of the next ────────────►

Checkpoints are compared with the state at their call after the block, when nothing is measured.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ckpt.disk import writeback
from ckpt.errors import LostRankError
from ckpt.state.compare import first_difference
from jobs.node import committing, received
from jobs.node.context import JobContext
from jobs.node.loop import blocks
from jobs.node.loop.update import update
from jobs.node.loop.watch import Watch
from jobs.node.loop.ways import Call, Way
from jobs.node.recorder import DIFFERS, Recorder
from jobs.node.subject import Subject
from jobs.plan.loop import Loop
from jobs.timing_log import Block, LoopSave, Step

_WARMUP_STEPS = 2
"""Steps before a block's first one: caches and clocks are as in the middle of a run then."""

_LONGEST_WAIT_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class _Saved:
    """A save of the block, with what is needed to check it."""

    number: int
    step: int
    call: Call
    final: Path
    updates: int
    """Of the state, before the call."""


@dataclass(slots=True)
class _Rows:
    """What a block adds to the log, on one rank."""

    blocks: list[Block] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    saves: list[LoopSave] = field(default_factory=list)


class TrainingLoop:
    """The loop of one job on one rank.

    Args:
        subject: whose state the steps change, and the saves save.
        context: of the job.
        loop: of the study.
        work: a step without its update.
        way: how the loop saves.
        scratch: the job's directory.
    """

    def __init__(
        self, subject: Subject, context: JobContext, loop: Loop, work: Callable[[], None], way: Way | None, scratch: Path
    ) -> None:
        self._subject, self._context, self._loop = subject, context, loop
        self._work, self._way, self._scratch = work, way, scratch
        self._updates = 0
        self._saved: list[_Saved] = []

    def block(self, number: int, every: int, recorder: Recorder, *, opening: bool = False) -> str:
        """Run one block, check what it saved, and record it; returns what failed, empty if nothing."""
        self._saved, rows = [], _Rows()
        with writeback.watched(self._scratch) as descriptor:
            watch = Watch()
            start_s = self._context.clock()
            problem = self._steps(number, every, rows.steps, watch, opening=opening)
            end_s, taken = self._context.clock(), watch.taken()
            failed_writes = committing.failed_writes(descriptor) if self._saved else ""
        rows.saves = [self._check(number, saved, failed_writes) for saved in self._saved]
        problem = problem or next((save.reason for save in rows.saves if not save.valid and _has_failed(save)), "")
        rows.blocks = [
            Block(
                block=number, rank=self._context.groups.process.rank, every=every, opening=opening, start_s=start_s,
                duration_s=end_s - start_s, valid=not problem, reason=problem, **asdict(taken),
            )
        ]  # fmt: skip
        self._record(rows, recorder)
        return problem

    def _steps(self, number: int, every: int, steps: list[Step], watch: Watch, *, opening: bool) -> str:
        """Run the steps of a block; returns what failed, empty if nothing."""
        groups, loop = self._context.groups, self._loop
        due = frozenset({0}) if opening else blocks.saves_at(loop, self._context.job.way, every)
        length = loop.settle_steps if opening else blocks.steps_of(loop, every)
        settled = 0
        clock = self._context.clock
        groups.world.barrier()
        previous_s = clock()
        for step in itertools.count(-_WARMUP_STEPS):
            if step >= length and settled >= loop.settle_steps:
                return ""
            blocked_s = self._save(number, step) if step in due and self._way else 0.0
            self._work()
            before_s = clock()
            if self._way:
                self._way.before_update()
            updating_s = clock()
            update(self._subject.state)
            self._updates += 1
            updated_s = clock()
            try:
                pending = any(groups.world.all_gather(bool(self._way and self._way.is_pending)))
            except LostRankError as error:
                return str(error)
            end_s = clock()
            steps.append(
                Step(
                    block=number, step=step, rank=groups.process.rank, start_s=previous_s, duration_s=end_s - previous_s,
                    blocked_s=blocked_s + updating_s - before_s, collective_s=end_s - updated_s,
                )
            )  # fmt: skip
            previous_s = end_s
            settled = settled + 1 if step >= max(due, default=0) and not pending else 0
            watch.look()
            if step > length + _LONGEST_WAIT_STEPS:
                return "the last save of the block did not end"
        return ""

    def _save(self, block: int, step: int) -> float:
        """Save, and return how long that held the step, in s."""
        assert self._way is not None  # the caller saves
        start_s = self._context.clock()
        final = self._scratch / f"block-{block}-save-{len(self._saved)}"
        updates = self._updates
        call = self._way.save(final)
        self._saved.append(_Saved(len(self._saved), step, call, final, updates))
        return self._context.clock() - start_s

    def _check(self, block: int, saved: _Saved, failed_writes: str) -> LoopSave:
        """Compare a checkpoint with the state at its call, remove it, and return its row."""
        call, committed, groups = saved.call, saved.call.committed, self._context.groups
        problem = committed.problem or failed_writes
        if not committed.problem:
            problem = self._difference(saved) or problem
        groups.world.barrier()  # all have read
        if groups.is_leader:
            shutil.rmtree(saved.final, ignore_errors=True)
        return LoopSave(
            block=block,
            save=saved.number,
            rank=groups.process.rank,
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
            valid=not problem,
            reason=problem,
        )

    def _difference(self, saved: _Saved) -> str:
        """What of a checkpoint is not the state at its call; empty if nothing."""
        try:
            loaded = self._subject.load(saved.final)
            update(loaded, self._updates - saved.updates)
            mismatch = first_difference(self._subject.state, loaded)
        except Exception as error:  # noqa: BLE001  # a strategy may raise, or return, anything
            return f"{DIFFERS}: it can't be loaded ({type(error).__name__}: {error})"
        return f"{DIFFERS}: {mismatch}" if mismatch else ""

    def _record(self, rows: _Rows, recorder: Recorder) -> None:
        """Send a block's rows to the first rank, which records those of all."""
        world = self._context.groups.world
        for name, kind in (("blocks", Block), ("steps", Step), ("saves", LoopSave)):
            sent = world.gather([asdict(row) for row in getattr(rows, name)])
            for others in world.read(sent, received.rows(kind)):
                recorder.loop_rows(name, others)
        world.barrier()
        recorder.flush()


def _has_failed(save: LoopSave) -> bool:
    """Whether a save failed, and didn't only save something wrong."""
    return not save.reason.startswith(DIFFERS)


