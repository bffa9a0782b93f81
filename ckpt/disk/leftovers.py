"""Directories that interrupted saves left beside a checkpoint. A save locks its own for as long as it writes there.

    .partial-latest@node17-job4711.0-5f2b9c0d1e3a4b68
             │      │      │         └ random, new for every save
             │      │      └ the Slurm job and its number of restarts, if there is one
             │      └ the host
             └ the checkpoint's name, or its beginning

A directory is removed only if it is certain that no process writes there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from ckpt.disk import durable, mounts

PREFIX = ".partial-"

_LONGEST_NAME_BYTES = 100
_LONGEST_HOST_BYTES = 60
"""A file name has at most 255 bytes."""

_NAME = re.compile(
    r"\.partial-(?P<checkpoint>.*)@(?P<host>[^@]+?)(?:-job(?P<job>\d+)\.(?P<restarts>\d+))?-[0-9a-f]{16}", re.DOTALL
)
_EARLIER_NAME = re.compile(r"\.partial-(?P<checkpoint>.*)-[0-9a-f]{16}", re.DOTALL)
"""As the first releases wrote it: where the host's name begins is ambiguous."""


class Use(Enum):
    """Whether a save still writes into a directory, and whether it is needed."""

    WRITING = "being written"
    LEFT = "left by a save that ended"
    UNKNOWN = "unknown: locks on this filesystem don't reach other hosts"
    UNLINKED = "a whole checkpoint that no link here leads to"


class Version(Enum):
    """Why a version of a checkpoint (`ckpt.disk.versions`) may be a leftover."""

    REPLACED = "the version that replaced it has the checkpoint's name"
    UNLINKED = "its link was removed or moved"


class Lock(Enum):
    """The result of an attempt to lock a directory."""

    TAKEN = "taken"
    HELD = "held by another process"
    UNSUPPORTED = "not supported here"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A directory that a save may have left, as its name describes it."""

    path: Path
    checkpoint: str
    """The checkpoint's name, or its beginning."""
    host: str = ""
    """Empty if the name doesn't have it."""
    job: str = ""
    """The Slurm job; empty if there was none."""
    restarts: int = 0
    link: Path | None = None
    """The link that leads to it until it is published; None for a staging directory."""
    version: Version | None = None


def new_path(final: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Choose a unique path for a new staging directory of a checkpoint."""
    job = environment.get("SLURM_JOB_ID", "")
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    slurm = f"-job{job}.{restarts}" if job.isdecimal() and restarts.isdecimal() else ""
    return final.parent / f"{PREFIX}{beginning(final)}@{_host()}{slurm}-{secrets.token_hex(8)}"


def of(final: Path) -> Iterator[Leftover]:
    """List the staging directories of a checkpoint, in use or not."""
    return (leftover for leftover in in_directory(final.parent) if is_of(leftover, final))


def is_of(leftover: Leftover, final: Path) -> bool:
    """Whether a save of this checkpoint made it."""
    name = beginning(final)
    earlier = leftover.path.name.startswith(PREFIX) and not leftover.host and leftover.checkpoint.startswith(f"{name}-")
    return leftover.checkpoint == name or earlier


def in_directory(directory: Path) -> Iterator[Leftover]:
    """List the staging directories of all checkpoints in a directory, in use or not."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX) and _is_directory(entry)]
    for name in sorted(names):
        if leftover := parsed(directory / name, name):
            yield leftover
        elif earlier := _EARLIER_NAME.fullmatch(name):
            yield Leftover(directory / name, earlier["checkpoint"])


def parsed(path: Path, name: str) -> Leftover | None:
    """Read a staging directory's name; None if it is not one."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    return Leftover(path, parts["checkpoint"], parts["host"], parts["job"] or "", int(parts["restarts"] or 0))


def sweep(final: Path) -> None:
    """Remove the directories that interrupted saves of a checkpoint left, on any host, if they are certainly unused."""
    for leftover in of(final):
        remove(leftover)


def remove(leftover: Leftover, *, unknown: bool = False) -> bool:
    """Remove a directory that a save left; with `unknown`, also one whose use is unknown, or to which no link leads.

    Returns:
        Whether it was removed. One that is being written never is.
    """
    with _probed(leftover) as probe:
        if probe.use is not Use.LEFT and not (unknown and probe.use in {Use.UNKNOWN, Use.UNLINKED}):
            return False
        try:
            # It may be the checkpoint that a save replaced without having synced the exchange.
            durable.fsync_path(leftover.path.parent)
        except OSError:
            return False
        shutil.rmtree(leftover.path, ignore_errors=True)
        if leftover.link and not os.path.lexists(leftover.path):
            leftover.link.unlink(missing_ok=True)
    return not os.path.lexists(leftover.path)


def use_of(leftover: Leftover) -> Use:
    """Find out whether a save still writes into a staging directory."""
    with _probed(leftover) as probe:
        return probe.use


class _probed:  # noqa: N801  # used as a context manager only
    """Locks a staging directory, if possible, so that its use doesn't change in the meantime."""

    def __init__(self, leftover: Leftover) -> None:
        self.use = Use.WRITING
        self._descriptor = -1
        try:
            self._descriptor = os.open(leftover.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # its process removed it, or it belongs to another user
            return
        self.use = _use(leftover, lock(self._descriptor))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def lock(descriptor: int) -> Lock:
    """Try to lock an open directory, without waiting; the lock lasts until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.HELD if error.errno in {errno.EWOULDBLOCK, errno.EACCES} else Lock.UNSUPPORTED
    return Lock.TAKEN


def _use(leftover: Leftover, answer: Lock) -> Use:
    if answer is Lock.HELD or (leftover.link and not os.path.lexists(leftover.link)):  # published meanwhile
        return Use.WRITING
    if leftover.version:
        return Use.LEFT if leftover.version is Version.REPLACED else Use.UNLINKED
    if _is_of_an_earlier_start(leftover):
        return Use.LEFT
    if answer is Lock.TAKEN and (leftover.host == _host() or _locks_reach_all_hosts(leftover.path)):
        return Use.LEFT
    return Use.UNKNOWN


def _is_of_an_earlier_start(leftover: Leftover, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether it is from before this Slurm job was requeued, which ends all of the job's processes first."""
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    return (
        bool(leftover.job)
        and leftover.job == environment.get("SLURM_JOB_ID")
        and restarts.isdecimal()
        and leftover.restarts < int(restarts)
    )


def _locks_reach_all_hosts(path: Path) -> bool:
    mount = mounts.mount_of(path)
    if mount.facts.locks == "with flock":
        return "flock" in mount.options.split(",")  # neither localflock nor noflock
    return mount.facts.locks == "always"


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def beginning(final: Path) -> str:
    """A checkpoint's name, cut to what fits into other names."""
    return _cut(final.name, _LONGEST_NAME_BYTES)


def _host() -> str:
    return _cut(platform.node().replace("@", "_") or "unnamed", _LONGEST_HOST_BYTES)


def _cut(text: str, most_bytes: int) -> str:
    """Cut a text to at most that many bytes."""
    return os.fsencode(text)[:most_bytes].decode("utf-8", "ignore")
