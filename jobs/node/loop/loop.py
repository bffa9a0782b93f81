"""The loop: blocks of steps with checkpoints off and on, every step of every rank in the log.

    a step:   save (if it is due) │ work │ wait for copies │ update of the state │ collective
              ◄──────────────── from the end of an update to the end of the next ────────────►

Checkpoints are compared with the state at their call after the block, when nothing is measured.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ckpt.disk import writeback
from ckpt.errors import LostRankError
from ckpt.process_group.store_group import StoreGroup
from jobs.node import committing, received
from jobs.node.context import JobContext
from jobs.node.loop import blocks
from jobs.node.loop.comparing import Comparison, Saved
from jobs.node.loop.update import update
from jobs.node.loop.watch import Watch
from jobs.node.loop.ways import Way
from jobs.node.recorder import Recorder
from jobs.node.subject import Subject
from jobs.plan.loop import Loop
from jobs.timing_log import Block, LoopSave, Step

_WARMUP_STEPS = 2
"""Steps before a block's first one: caches and clocks are as in the middle of a run then."""

_PENDING = "pending"
"""What a rank answers whose save is under way."""

_LAST_WORDS_S = 10
"""How long the first process waits for the others' rows of a block that failed: some may be lost."""


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
        way: how the loop saves; None if it doesn't.
        scratch: the job's directory.
        run: number of the first block.
    """

    def __init__(
        self,
        subject: Subject,
        context: JobContext,
        loop: Loop,
        work: Callable[[], None],
        way: Way | None,
        scratch: Path,
        *,
        run: int,
    ) -> None:
        self._subject, self._context, self._loop = subject, context, loop
        self._work, self._way, self._scratch, self._run = work, way, scratch, run
        self._directories = [scratch, *([context.shared] if context.shared else [])]
        self._updates = 0
        self._recording_s, self._recorded = 0.0, 0

    def block(self, number: int, every: int, recorder: Recorder, *, opening: bool = False) -> str:
        """Run one block, compare what it saved, and record it; returns what failed on any rank, empty if nothing."""
        rows, saved, clock = _Rows(), list[Saved](), self._context.clock
        with ExitStack() as stack:
            descriptors = [stack.enter_context(writeback.watched(directory)) for directory in self._directories]
            watch, start_s = Watch(), clock()
            problem = self._steps(number, every, rows.steps, saved, watch, opening=opening)
            end_s, taken = clock(), watch.taken()
            if problem and self._way:
                self._way.abandon(problem)
            failed_writes = "; ".join(filter(None, map(committing.failed_writes, descriptors))) if saved else ""
            comparison = Comparison(self._subject, self._way, self._context, self._updates, failed_writes, problem)
            rows.saves = [comparison.row(number, save) for save in saved]
            self._remove(saved, descriptors)
        problem = comparison.problem
        rows.blocks = [
            Block(
                block=number, rank=self._context.groups.process.rank, every=every, opening=opening, start_s=start_s,
                duration_s=end_s - start_s, valid=not problem, reason=problem, run=self._run, **asdict(taken),
            )
        ]  # fmt: skip
        recorder.provenance(loop_recorder_s=self._recording_s / max(1, self._recorded))
        self._record(rows, recorder, number, problem)
        return problem

    def _steps(
        self, number: int, every: int, steps: list[Step], saved: list[Saved], watch: Watch, *, opening: bool
    ) -> str:
        """Run the steps of a block; returns what failed on any rank, empty if nothing."""
        groups, loop, clock = self._context.groups, self._loop, self._context.clock
        due = frozenset({0}) if opening else blocks.saves_at(loop, self._context.job.way, every)
        length = 1 if opening else blocks.steps_of(loop, every)
        settled, pending = 0, False
        with suppress(LostRankError):  # the first step's collective has it
            groups.world.barrier()
        previous_s = clock()
        for step in itertools.count(-_WARMUP_STEPS):
            if step >= length and settled >= loop.settle_steps and not pending:
                return ""
            blocked_s = self._save(number, step, saved) if step in due else 0.0
            self._work()
            blocked_s += self._before_update()
            update(self._subject.state)
            self._updates += 1
            updated_s = clock()
            try:
                was_pending = pending
                failure, pending = self._meet()
            except LostRankError as error:
                return str(error)
            end_s = clock()
            steps.append(
                Step(
                    block=number, step=step, rank=groups.process.rank,
                    start_s=previous_s, duration_s=end_s - previous_s,
                    blocked_s=blocked_s, collective_s=end_s - updated_s,
                )
            )  # fmt: skip
            if failure:
                return failure
            previous_s = end_s
            quiet = step > max(due, default=-1) and not (was_pending or pending)
            settled = settled + 1 if quiet else 0
            watch.look()
            self._recording_s, self._recorded = self._recording_s + clock() - end_s, self._recorded + 1
        return ""

    def _meet(self) -> tuple[str, bool]:
        """The collective of a step: which save failed on any rank, and whether one is under way."""
        world, way = self._context.groups.world, self._way
        mine = "" if way is None else way.failure or (_PENDING if way.is_pending else "")
        states = world.read(world.all_gather(mine), received.text)
        return next((state for state in states if state not in {"", _PENDING}), ""), _PENDING in states

    def _save(self, block: int, step: int, saved: list[Saved]) -> float:
        """Save, and return how long that held the step, in s."""
        assert self._way is not None  # it is due
        start_s = self._context.clock()
        call = self._way.save(self._scratch / f"block-{block}-save-{len(saved)}")
        if call is not None:
            saved.append(Saved(len(saved), step, call, self._updates))
        return self._context.clock() - start_s

    def _before_update(self) -> float:
        """Wait until the state may change, and return how long that held the step, in s."""
        if self._way is None:
            return 0.0
        start_s = self._context.clock()
        self._way.before_update()
        return self._context.clock() - start_s

    def _remove(self, saved: list[Saved], descriptors: list[int]) -> None:
        """Remove the block's checkpoints, and have the filesystem do so now, not in the next block."""
        with suppress(LostRankError):
            self._context.groups.world.barrier()  # all have read
        if self._context.groups.is_leader:
            for checkpoint in (path for save in saved for path in (save.call.checkpoint, save.call.copy) if path):
                shutil.rmtree(checkpoint, ignore_errors=True)
        for descriptor in descriptors if saved else ():
            committing.failed_writes(descriptor)

    def _record(self, rows: _Rows, recorder: Recorder, number: int, problem: str) -> None:
        """Send a block's rows to the first rank, which records those of all."""
        world = self._context.groups.world
        mine = [[asdict(row) for row in part] for part in (rows.blocks, rows.steps, rows.saves)]
        if problem and isinstance(world, StoreGroup):
            sent: list[Any] = list(world.gather_survivors(f"block {number}", mine, _LAST_WORDS_S).values())
        else:
            sent = world.gather(mine)
        for blocks_, steps_, saves_ in world.read(sent, _rows):
            recorder.loop_rows(blocks_, steps_, saves_)
        if not problem:
            world.barrier()
        recorder.flush()


def _rows(value: Any) -> tuple[list[Block], list[Step], list[LoopSave]]:
    """Reads the rows that another rank sends."""
    if not isinstance(value, list) or len(value) != 3:
        raise TypeError("no rows of a block")
    return received.rows(Block)(value[0]), received.rows(Step)(value[1]), received.rows(LoopSave)(value[2])
