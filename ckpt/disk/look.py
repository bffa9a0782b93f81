"""Looks at a directory, as a program of its own that may hang: `python look.py DIRECTORY read|write [FILE]`.

It prints the number of the error that ended the look, or 0. `answering` starts it, with nothing imported but this.
"""

from __future__ import annotations

import os
import sys

_BYTES = 4096


def look(directory: str, *files: str, write: bool) -> None:
    """Ask for a directory's room, its entries and the beginning of some files in it.

    On demand, write, sync and read a small file without a name, too.
    """
    os.statvfs(directory)
    with os.scandir(directory) as entries:
        next(entries, None)
    for name in files:
        descriptor = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH118
        try:
            os.pread(descriptor, _BYTES, 0)
        finally:
            os.close(descriptor)
    if write:
        path = os.path.join(directory, f".look-{os.getpid()}-{os.urandom(4).hex()}")  # noqa: PTH118  # one import less
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.unlink(path)  # noqa: PTH108  # first, so that nothing is left of a look that hangs
            os.write(descriptor, bytes(_BYTES))
            os.fsync(descriptor)
            os.pread(descriptor, _BYTES, 0)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    try:
        look(sys.argv[1], *sys.argv[3:], write=sys.argv[2] == "write")
    except OSError as error:
        print(error.errno)
    else:
        print(0)
