"""The target to which a job's own drains: checked as the first, and with a directory for the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ckpt.disk import mounts
from jobs.errors import TargetError
from jobs.node import targets
from jobs.node.answer import await_target
from jobs.node.context import JobContext
from jobs.node.hooks import run_hooks
from jobs.node.recorder import Recorder


@contextmanager
def second_level(context: JobContext, recorder: Recorder) -> Iterator[JobContext]:
    """Make the job's directory on its second level, if it has one, and remove it in the end; yields a context with it.

    Raises:
        TargetError: if the target can't take the job's checkpoints, or is the first level.
    """
    job, name = context.job, context.target.drain_to
    if name is None:
        yield context
        return
    there = replace(context, job=replace(job, target=name))
    directory = targets.resolve(name, there.target, os.environ)
    await_target(directory, there)
    targets.check(name, there.target, directory, job.directory_bytes, job.directory_files)
    if directory.resolve() == targets.resolve(job.target, context.target, os.environ).resolve():
        raise TargetError(
            f"target {job.target!r} drains to {name!r}, and both are {directory} on this node",
            "give one of them another `path`",
        )
    mount = mounts.mount_of(directory)
    recorder.storage({"drain_to": name, "drain_filesystem": mount.filesystem, "drain_source": mount.source})
    on_each_node = there.target.on_each_node
    with targets.scratch(directory, job, context.paths.root, on_each_node=on_each_node) as scratch:
        run_hooks("prepare", scratch, there, recorder)
        yield replace(context, shared=scratch)
