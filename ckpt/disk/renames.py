"""Ways to give a directory a name, by what the filesystem can do: without a replacement, by an exchange, by a link."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_NO_EXCHANGE = frozenset({
    errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT,
})  # fmt: skip
"""The errors of filesystems that can't exchange two directories, that ignore the flag, and of sandboxes."""

_NO_LINKS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""The errors of filesystems that don't know a flag of renameat2(2)."""


def exchange(first: Path, second: Path) -> None:
    """Exchange two names in a single step."""
    renameat2(first, second, _RENAME_EXCHANGE)


def rename_to_free(source: Path, target: Path) -> None:
    """Rename unless anything has the new name; some filesystems don't support that, and some ignore it."""
    renameat2(source, target, _RENAME_NOREPLACE)


def can_exchange(staging: Path) -> bool:
    """Whether two directories can be exchanged here, tried with two that aren't empty.

    Some filesystems ignore the flag, and do a plain rename: then one of the two is gone, or has both names.
    """
    pair = first, second = staging / "first", staging / "second"
    for directory in pair:
        directory.mkdir()
        (directory / directory.name).touch()
    try:
        exchange(first, second)
        # Listings come from the filesystem; the kernel itself believes that the names were exchanged.
        names = [{path.name for path in directory.iterdir()} for directory in (staging, *pair)]
    except OSError as error:
        if error.errno in _NO_EXCHANGE:
            return False
        raise
    else:
        return names == [{"first", "second"}, {"second"}, {"first"}]
    finally:
        for directory in pair:
            shutil.rmtree(directory, ignore_errors=True)


def can_link(staging: Path) -> bool:
    """Whether symbolic links can be made here."""
    link = staging / "link"
    try:
        link.symlink_to("nowhere")
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    link.unlink()
    return True


def renameat2(source: Path, target: Path, flags: int) -> None:
    """Call the system call of that name."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
