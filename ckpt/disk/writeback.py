"""Write errors that no program gets: the kernel failed to write a closed file back, and forgot the file.

A program that opens such a file again and syncs it gets no error. The filesystem remembers one for every descriptor
that was open at the time: syncfs(2) reports it since Linux 5.8.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watched(directory: Path) -> Iterator[int]:
    """Open a descriptor before anything is written, for `raise_errors`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def raise_errors(descriptor: int) -> None:
    """Sync the filesystem of a descriptor, and raise an error if it failed to write since the descriptor was opened.

    The error may be about another program's file: the kernel doesn't record which.

    Raises:
        OSError: the error.
    """
    if _libc.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}, while the kernel wrote this filesystem's files back")


_libc = ctypes.CDLL(None, use_errno=True)
