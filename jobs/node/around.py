"""What a job does around its trials, or its loop: the study's hooks, the I/O plan, small files, the ceiling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ckpt.disk import io_plan
from ckpt.disk.io_plan import IoPlan
from jobs.node import received
from jobs.node.ceiling import measure_ceiling
from jobs.node.context import JobContext
from jobs.node.hooks import run_hooks
from jobs.node.metadata import measure_metadata
from jobs.node.recorder import Recorder
from jobs.node.storage.facts import of_servers
from jobs.node.subject import Subject


@contextmanager
def trials(subject: Subject, scratch: Path, context: JobContext, recorder: Recorder) -> Iterator[None]:
    """Prepare the target, and measure before and after the body what it can do; every process of the job calls it."""
    asked = context.study.trials
    run_hooks("prepare", scratch, context, recorder)
    if context.is_first and context.target.prepare:  # which may have changed the layout
        recorder.storage(of_servers(scratch))
    recorder.provenance(io_plan=str(_agree_on_io(scratch, context)))
    if asked.metadata:
        measure_metadata(scratch, context, recorder)
    if asked.ceiling:
        measure_ceiling("before", subject, scratch, context, recorder)
        recorder.flush()
    yield
    if asked.ceiling:
        measure_ceiling("after", subject, scratch, context, recorder)


def _agree_on_io(scratch: Path, context: JobContext) -> IoPlan:
    """Let all processes write and read as the first one knows or finds best there; outside any clock."""
    mine = asdict(io_plan.plan_for(scratch)) if context.is_first else None
    plan: IoPlan = context.groups.world.broadcast(mine, received.row(IoPlan))
    io_plan.remember(scratch, plan)
    return plan
