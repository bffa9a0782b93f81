"""The directory on the target in which one run of `python -m jobs faults` works, and those that killed runs left there.

A run locks its own for as long as it lives, and a note in it names the host.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckpt.disk.leftovers import Lock, lock

_PREFIX = "ckpt-faults-"
_NOTE = "made-by-ckpt-study"

_REMOVALS, _BETWEEN_S = 20, 0.5


@contextmanager
def made_in(target: Path) -> Iterator[Path]:
    """Make such a directory, and remove it in the end."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(descriptor)  # before the note: without it, no other run removes the directory
        (path / _NOTE).write_text(_owner())
        yield path
    finally:
        remove(path)
        os.close(descriptor)


def sweep(target: Path) -> list[Path]:
    """Remove the directories that runs on this host left when they were killed; returns those that are gone."""
    removed = []
    for path in sorted(target.glob(f"{_PREFIX}*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or just removed
            continue
        try:
            if _note(path) == _owner() and lock(descriptor) is Lock.TAKEN:
                remove(path)
                removed += [] if path.exists() else [path]
        finally:
            os.close(descriptor)
    return removed


def remove(directory: Path) -> None:
    """Remove a directory to which a process that was killed may write for another moment."""
    for _ in range(_REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_BETWEEN_S)


def _owner() -> str:
    return f"python -m jobs faults on {platform.node()}\n"


def _note(directory: Path) -> str:
    with suppress(OSError, ValueError):
        return (directory / _NOTE).read_text()
    return ""
