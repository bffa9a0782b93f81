"""Holds a directory open while it is read, even if its name is given to another directory.

A checkpoint may be replaced while it is being read: the name then belongs to another directory, and the files of this
one are removed. Paths below `/proc/self/fd/N` lead to the directory that was opened, and to no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int]
"""The device and inode of a file or a directory, which don't depend on its name."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A directory that is held open."""

    name: Path
    path: Path
    """Leads to the directory, even if `name` no longer does."""
    identity: Identity

    @property
    def is_current(self) -> bool:
        """Whether the name still belongs to this directory."""
        return identity(self.name) == self.identity

    def named(self, text: str) -> str:
        """Replace the path in a message by the name."""
        return text.replace(str(self.path), str(self.name))


@contextmanager
def pinned(name: Path) -> Iterator[Pinned]:
    """Hold a directory open.

    Raises:
        OSError: if there is no such directory.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        own = status.st_dev, status.st_ino
        # Without /proc there is no such path: then use the name; `is_current` tells of a replacement.
        yield Pinned(name, path if identity(path) == own else name, own)
    finally:
        os.close(descriptor)


def identity(path: Path | int) -> Identity | None:
    """The identity of what a path or a descriptor leads to; None if there is nothing."""
    try:
        status = os.fstat(path) if isinstance(path, int) else path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
