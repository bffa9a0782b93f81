"""Waiting for a target whose servers may be down, before a job's processes ask it for anything and hang for good."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import TargetError
from jobs.node import received, targets
from jobs.node.context import JobContext
from jobs.node.recorder import journal


def await_target(directory: Path, context: JobContext) -> None:
    """Wait until a target answers; on every node one process asks, and the others wait for it.

    Raises:
        TargetError: on all processes of a node on which it doesn't answer in time.
    """
    job, node = context.job, context.groups.node
    problem = ("", "")
    if node.rank == 0:
        try:
            targets.must_answer(job.target, directory, context.patience_s, lambda line: journal(job.id, line))
        except TargetError as error:
            problem = (error.what, error.remedy)
    what, remedy = node.broadcast(problem, received.pair(received.text, received.text))
    if what:
        raise TargetError(what, remedy)
