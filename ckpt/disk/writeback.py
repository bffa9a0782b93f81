"""Write errors that reach nobody: the kernel wrote a closed file back, failed, and forgot the file.

Whoever opens such a file anew and syncs it gets no error. The filesystem itself remembers one, for every descriptor
that was opened before: syncfs(2) reports it since Linux 5.8.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def watched(directory: Path) -> Iterator[int]:
    """A descriptor, opened before anything is written, to ask for errors with `raise_errors`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def raise_errors(descriptor: int) -> None:
    """Sync the filesystem of a descriptor, and raise what it could not write since that was opened.

    The error may be about another program's file: the kernel keeps no record of whose it was.

    Raises:
        OSError: the error.
    """
    if _libc.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}, while the kernel wrote this filesystem's files back")


_libc = ctypes.CDLL(None, use_errno=True)
