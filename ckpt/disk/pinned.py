"""One directory for as long as it is read, whatever its name comes to mean meanwhile.

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
"""A file's or a directory's device and inode: what it is, whatever it is called."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A directory that is held open."""

    name: Path
    path: Path
    """Leads to the directory, whatever `name` comes to mean."""
    identity: Identity

    @property
    def is_current(self) -> bool:
        """Whether the name still belongs to this directory."""
        return identity(self.name) == self.identity

    def named(self, text: str) -> str:
        """A message about the path as one about the name."""
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
        # Without /proc there is no such path: the name has to do, and a replacement shows in `is_current`.
        yield Pinned(name, path if identity(path) == own else name, own)
    finally:
        os.close(descriptor)


def identity(path: Path | int) -> Identity | None:
    """What a path, or a descriptor, leads to; None if that is nothing."""
    try:
        status = os.fstat(path) if isinstance(path, int) else path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
