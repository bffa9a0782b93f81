"""The job's body where a study has a training loop: what a step is, how it saves, and all its blocks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ckpt.background.process import ProcessSaver
from ckpt.background.thread import ThreadSaver
from jobs.node import around, received
from jobs.node.context import JobContext
from jobs.node.groups import ProcessGroups, connect, meeting_point
from jobs.node.loop import blocks, saving, steps, worker
from jobs.node.loop.by_checkpointer import ByCheckpointer
from jobs.node.loop.loop import TrainingLoop
from jobs.node.loop.update import update
from jobs.node.loop.ways import Behind, Library, Sync, Way
from jobs.node.recorder import Progress, Recorder, journal
from jobs.node.subject import Subject
from jobs.node.trial import TrialError
from jobs.plan.loop import CHECKPOINTER, NONE, PROCESS, SYNC, THREAD, Loop


def run_loop(subject: Subject, scratch: Path, context: JobContext, recorder: Recorder, progress: Progress) -> None:
    """Run a job's blocks between two measurements of the ceiling; every process of the job calls it.

    Where an earlier run of the same job made progress, the first save comes again, since this process is a new one, and
    then the passes over all kinds of blocks that no run has finished.

    Raises:
        TrialError: if a save failed; the block's rows are in the log, marked.
    """
    loop, world = context.study.loop, context.groups.world
    assert loop is not None  # the caller has one
    order = blocks.order(loop, context.job.id)
    sent = world.broadcast([progress.blocks_done, progress.next_block], received.pair(received.count, received.count))
    done, number = sent
    if done >= len(order):
        return
    with around.trials(subject, scratch, context, recorder):
        work = _step(subject, context, loop, recorder)
        way = _way(subject, scratch, context)
        try:
            training = TrainingLoop(subject, context, loop, work, way, scratch, run=number)
            _run(training, number, order[done:], loop, context, recorder)
        except BaseException:
            if way:
                way.abandon("the job has ended")
            raise
        finally:
            if way:
                way.close()


def _run(
    training: TrainingLoop, number: int, order: list[int], loop: Loop, context: JobContext, recorder: Recorder
) -> None:
    opening = context.job.way != NONE
    for every in [*([max(loop.every)] if opening else []), *order]:
        problem = training.block(number, every, recorder, opening=opening)
        if context.is_first:
            what = "the first save" if opening else f"a save every {every} steps" if every else "no checkpoints"
            journal(context.job.id, f"block {number}, {what}{': ' + problem if problem else ''}")
        if problem:
            raise TrialError(f"block {number}: {problem}")
        opening = False
        number += 1


def _step(subject: Subject, context: JobContext, loop: Loop, recorder: Recorder) -> steps.Work:
    """Find out what makes a step of the stated length, on all ranks at once."""
    kind, world = context.job.step, context.groups.world
    cores = steps.cores_of(loop.cores, context.groups.scale.tasks_per_node)
    piece = steps.piece_of(kind, cores, loop.step_s)

    def everyone(number: float) -> list[float]:
        return world.read(world.all_gather(number), received.number)

    world.barrier()
    update_s = steps.time_of_update(partial(update, subject.state))
    work = steps.step_work(kind, piece, loop.step_s, update_s, everyone)
    if context.is_first:
        recorder.provenance(loop_cores=cores, loop_update_s=update_s)
    return work


def _way(subject: Subject, scratch: Path, context: JobContext) -> Way | None:
    """How the job's loop saves; None if it doesn't."""
    name, proof, process = context.job.way, context.proof, context.groups.process
    if name == NONE:
        return None
    if name == PROCESS:
        prepare = partial(worker.prepare, context.paths.root, context.job.id, process, proof)
        alone = subject.with_groups(ProcessGroups.alone())  # the process has groups of its own
        left = None if process.rank else meeting_point(context.job, context.paths, process, worker.PURPOSE)
        way: Way = Behind(alone, ProcessSaver(prepare), worker.save, left)
    elif name == CHECKPOINTER:
        assert context.study.loop is not None  # it saves in one
        way = ByCheckpointer(
            subject, proof, scratch, context.shared,
            drain_bytes_per_s=context.target.drain_bytes_per_s, keep=context.study.loop.saves,
        )  # fmt: skip
    else:
        saving_subject = subject.with_groups(_groups_of_saves(context))
        saving_subject.prepare_groups(saving_subject.groups.writers)
        if name == SYNC:
            way = Sync(saving_subject, proof)
        elif name == THREAD:
            way = Behind(saving_subject, ThreadSaver(), partial(saving.save, saving_subject, proof))
        else:
            way = Library(saving_subject, proof, subject.strategy.async_saver(name))
    subject.prepare_groups(subject.groups.loaders)
    return way


def _groups_of_saves(context: JobContext) -> ProcessGroups:
    """Groups for what saves beside the loop, whose ranks meet in every step."""
    return connect(
        context.job, context.paths, context.groups.process, node_local=context.target.on_each_node,
        timeout_s=context.study.trials.rank_timeout_s, purpose=worker.PURPOSE,
    )  # fmt: skip
