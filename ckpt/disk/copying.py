"""Copies the files of a directory to another filesystem, at a stated rate if asked.

The kernel copies, block by block, without the interpreter's lock; pages of the source don't stay in the page cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ckpt.disk.direct_io import start_writeback
from ckpt.errors import CheckpointError

_BLOCK_BYTES = 8 * 2**20


@dataclass
class Pace:
    """How fast a copy may be, over all its files.

    Attributes:
        most_bytes_per_s: 0 for as fast as possible.
        stop: ends the copy when it is set.
    """

    most_bytes_per_s: float
    stop: threading.Event
    _began_s: float = field(default_factory=time.monotonic)
    _copied_bytes: int = 0

    def copied(self, size_bytes: int) -> None:
        """Count what was copied, and wait until the rate is right.

        Raises:
            CheckpointError: if the copy is to stop.
        """
        self._copied_bytes += size_bytes
        ahead_s = 0.0
        if self.most_bytes_per_s:
            ahead_s = self._began_s + self._copied_bytes / self.most_bytes_per_s - time.monotonic()
        if self.stop.wait(max(0.0, ahead_s)):
            raise CheckpointError("the copy was interrupted")


def copy_files(source: Path, target: Path, names: Collection[str], pace: Pace) -> None:
    """Copy files into a directory that exists; their parents are made. Nothing is synced.

    Raises:
        CheckpointError: if a file ends too early, or the copy is to stop.
        OSError: if a file can't be read or written.
    """
    for name in sorted(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_file(source / name, target / name, pace)


def _copy_file(source: Path, target: Path, pace: Pace) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        size_bytes = os.fstat(reading.fileno()).st_size
        offset = 0
        while offset < size_bytes:
            copied = os.sendfile(writing.fileno(), reading.fileno(), offset, min(_BLOCK_BYTES, size_bytes - offset))
            if not copied:
                raise CheckpointError(f"{source} ended while it was being copied")
            start_writeback(writing.fileno(), offset, copied)
            os.posix_fadvise(reading.fileno(), offset, copied, os.POSIX_FADV_DONTNEED)
            offset += copied
            pace.copied(copied)
