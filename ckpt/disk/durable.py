"""Bringing files and directories to stable storage."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ckpt.disk.listing import files_below
from ckpt.threads import over

_SYNC_THREADS = 8
"""Concurrent fsyncs let a journal commit several files at once; more did not help on one disk."""


def flush(directory: Path, *, files: bool = True) -> None:
    """Bring a directory's content to stable storage: every file (unless already there), then every directory.

    Raises:
        OSError: if the kernel reports that something could not be written, or a directory can't be listed.
    """
    if files:
        sync_files([entry.path for entry in files_below(directory)])
    for parent, _, _ in os.walk(directory, topdown=False, onerror=_raise):
        fsync_path(parent)


def _raise(error: OSError) -> None:
    """Raise what os.walk would leave out: directories that can't be listed aren't synced either."""
    raise error


def sync_files(paths: Sequence[Path | str]) -> None:
    """Bring files to stable storage, several at a time.

    Raises:
        OSError: if the kernel reports that something could not be written.
    """
    over(paths, fsync_path, min(_SYNC_THREADS, len(paths)))


def fsync_path(path: Path | str) -> None:
    """Bring one file, or one directory's entries, to stable storage.

    Some filesystems sync no directories: what they keep of names is their own matter.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP} or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Make a directory and its missing parents, and sync the entries that lead to it.

    The program that made a parent may not have synced its entry: after a power cut it could be lost with everything
    in it. So all entries up to the mount point are synced, each once per process.

    Raises:
        OSError: if a directory can't be made, or one that was made can't be synced.
    """
    if not path.is_dir():
        make_directories(path.parent)
        path.mkdir(exist_ok=True)
        fsync_path(path.parent)
    _sync_chain(path.resolve())


_durable_entries: set[tuple[str, int]] = set()
"""The paths and inodes of directories whose entries this process has synced, up to the mount point."""


def _sync_chain(path: Path) -> None:
    device = path.stat().st_dev
    for directory in (path, *path.parents):
        key = str(directory), directory.stat().st_ino
        at_mount_point = directory.parent == directory or directory.parent.stat().st_dev != device
        if key in _durable_entries or at_mount_point:
            return
        with suppress(OSError):  # a parent that this user may not open
            fsync_path(directory.parent)
            _durable_entries.add(key)


def write_atomically(path: Path, content: bytes | str, *, sync: bool, mode: int | None = None) -> None:
    """Write a small file that appears under its name only when it is complete, and replaces an earlier one.

    The content goes into a new file with a random name in the same directory, which is then renamed. After an error
    nothing of it is left.

    Args:
        path: the file.
        content: its bytes, or text to be encoded as UTF-8.
        sync: bring the data to stable storage before the file gets its name. The directory's entry is the caller's.
        mode: the permissions, whatever the umask; None for those of any new file.

    Raises:
        OSError: if it can't be written; an earlier file is untouched then.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, no path
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if mode is not None:
                os.fchmod(descriptor, mode)
            if sync:
                os.fsync(descriptor)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # write(2) and fsync(2) know no name
            error.filename = str(path)
        raise
