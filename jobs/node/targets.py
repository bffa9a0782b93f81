"""The directory of a target on this node: resolved, checked, and with a scratch directory made and removed in it."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Template

from ckpt.disk import mounts
from ckpt.disk.answering import is_it_down, silence
from ckpt.disk.block_devices import lies_in_memory
from ckpt.disk.room import Room, room_of, size
from jobs.errors import TargetError
from jobs.plan.plan import Job
from jobs.plan.study import Target

_OWNER_NOTE = "made-by-ckpt-study"
_CHECKPOINTS = "checkpoints"

_FALLBACKS = ("SLURM_TMPDIR", "TMPDIR")

_SPARE_SHARE = 0.05
"""Filesystems slow down, and metadata grows, in the last few per cent."""


def resolve(name: str, target: Target, environment: Mapping[str, str]) -> Path:
    """The directory of a target on this node.

    Raises:
        TargetError: if a variable isn't set, or nothing names a directory; the message lists what was tried.
    """
    where = f"target {name!r}"
    if target.path is None:
        for variable in _FALLBACKS:
            if environment.get(variable):
                return Path(environment[variable])
        raise TargetError(
            f"{where} has no path, and neither {' nor '.join('$' + v for v in _FALLBACKS)} is set here",
            f"write `path = ...` below [targets.{name}]",
        )
    template = Template(target.path)
    unset = [variable for variable in template.get_identifiers() if not environment.get(variable)]
    if unset:
        raise TargetError(
            f"{where}: path = {target.path!r}, but {', '.join('$' + v for v in unset)} is not set here",
            "set it, or write the directory itself",
        )
    return Path(template.safe_substitute(environment)).expanduser().absolute()


def must_answer(name: str, directory: Path, limit_s: float, tell: Callable[[str], object] = lambda _: None) -> None:
    """Make sure that a directory's filesystem answers, and writes; to ask it otherwise may never end.

    Raises:
        TargetError: if it doesn't within `limit_s`.
    """
    silent = silence(directory, limit_s, write=True, tell=tell)
    if silent:
        raise TargetError(
            f"target {name!r} ({directory}) {silent}",
            f"{is_it_down(directory)} When `ls {directory}` answers, repeat the command",
        )


def check(name: str, target: Target, directory: Path, needed_bytes: int, needed_files: int) -> None:
    """Make sure that a directory can take a job's checkpoints.

    Raises:
        TargetError: if it doesn't exist, can't be written to, is memory, or has too little room.
    """
    where = f"target {name!r} ({directory})"
    if not directory.is_dir():
        raise TargetError(f"{where} is no directory here", "mount or make it, or correct `path` in the study")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise TargetError(f"{where} can't be written to by this user", "choose another `path`, or get the permission")
    mount = mounts.mount_of(directory)
    if target.filesystem not in {None, mount.filesystem}:
        raise TargetError(
            f"{where} lies on {mount.filesystem} ({mount.source} at {mount.mount_point}), and the study says "
            f"`filesystem = {target.filesystem!r}`",
            "is it mounted on this node?",
        )
    memory = lies_in_memory(directory)
    if memory and not target.allow_tmpfs:
        raise TargetError(
            f"{where} lies on {memory}, which is memory and no disk",
            f"choose another `path`, or write `allow_tmpfs = true` below [targets.{name}] if that is what you want to "
            "measure",
        )
    _require_room(where, room_of(directory, mount), int(needed_bytes * (1 + _SPARE_SHARE)), needed_files)


def _require_room(where: str, room: Room, needed_bytes: int, needed_files: int) -> None:
    if room.free_bytes is not None and room.free_bytes < needed_bytes:
        raise TargetError(
            f"{where} has {size(room.free_bytes)} free, and a job may need {size(needed_bytes)} at a time",
            "make room, choose another `path`, or a smaller `state.tensors`, or `loop.saves` where there is a loop",
        )
    if room.free_files is not None and room.free_files < needed_files:
        raise TargetError(
            f"{where} has room for {room.free_files:,} more files, and a job may need {needed_files:,} at a time",
            "remove files, choose another `path`, or leave out the strategy that writes so many",
        )
    largest_bytes = needed_bytes // max(1, needed_files)  # at least one file is as large as the mean
    if room.bricks and largest_bytes > max(room.bricks):
        raise TargetError(
            f"{where} has no brick with room for a file of {size(largest_bytes)}, as one checkpoint may hold: the "
            f"emptiest has {size(max(room.bricks))}",
            "make room on the bricks, choose a sharded volume or another `path`, or a smaller `state.tensors`",
        )


@contextlib.contextmanager
def scratch(directory: Path, job: Job, results: Path, *, on_each_node: bool) -> Iterator[Path]:
    """A directory for this job alone, removed at the end with all that the job wrote into it.

    What an earlier run of the same job left, having been killed, is removed too: a note inside names its job, and with
    `on_each_node` its node, since a target that is called node-local may not be.
    """
    try:
        root = _made(directory, job, results, on_each_node=on_each_node)
    except OSError as error:
        raise TargetError(
            f"target {job.target!r} ({directory}) takes no directory for the job: {error.strerror or error}",
            "when it works again, submit the study again",
        ) from error
    try:
        yield root / _CHECKPOINTS
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)  # other ranks may be writing still; the job's next run removes the rest
        raise
    try:
        shutil.rmtree(root)
    except OSError as error:
        raise TargetError(
            f"target {job.target!r}: what the job wrote can't be removed ({error.strerror or error})",
            f"when it works again, remove {root}; everything is measured",
        ) from error


def _made(directory: Path, job: Job, results: Path, *, on_each_node: bool) -> Path:
    """Remove what an earlier run of the job left, and make its directory."""
    prefix = f"ckpt-{job.id}-"
    owner = f"{results.resolve()} {job.id}" + (f" {platform.node()}\n" if on_each_node else "\n")
    for left in directory.glob(f"{glob.escape(prefix)}*"):
        note = left / _OWNER_NOTE
        if note.is_file() and note.read_text() == owner:
            shutil.rmtree(left)
    root = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    try:
        (root / _OWNER_NOTE).write_text(owner)
        (root / _CHECKPOINTS).mkdir()
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return root
