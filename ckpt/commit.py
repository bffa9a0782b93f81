"""How a checkpoint becomes visible: written beside its final name, synced, renamed — whole or not at all.

    staging = begin(final)            # an empty directory beside `final`
    strategy.save(state, staging)
    storage.flush(staging)            # files and directories on stable storage
    publish(staging, final)           # rename, and sync the parent: from here on it is a checkpoint

With `replace`, the rename exchanges the new checkpoint and the old one in a single step: the final name never goes
without. A directory whose name begins with `.partial-` is never a checkpoint.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import secrets
import shutil
from pathlib import Path

from ckpt import storage
from ckpt.errors import CheckpointError

STAGING_PREFIX = ".partial-"

_LONGEST_NAME = 100

_held: dict[Path, int] = {}
"""A descriptor with a lock for each staging directory of this process: who finds it unlocked knows that it was left."""


def staging_prefix(final: Path) -> str:
    """How the staging directories of a checkpoint begin, on any machine."""
    return f"{STAGING_PREFIX}{final.name[:_LONGEST_NAME]}-"


def begin(final: Path, *, replace: bool = False) -> Path:
    """Make an empty directory beside `final`, on the same filesystem, to write into.

    What a save of the same name left behind on this machine, having been killed, is removed.

    Raises:
        CheckpointError: if something has the final name already, unless that is to be replaced and can be; and if no
            directory can be made there.
    """
    if os.path.lexists(final) and not replace:
        raise CheckpointError(f"{final} exists already: give the checkpoint another name, or move the old one away")
    mine = f"{staging_prefix(final)}{platform.node()}-"
    try:
        for left in final.parent.iterdir():
            if left.name.startswith(mine) and left.is_dir() and not left.is_symlink():
                _remove_if_left(left)
        staging = final.parent / f"{mine}{secrets.token_hex(8)}"
        staging.mkdir()  # with the permissions of any new directory: mkdtemp's would hide the checkpoint from its group
        if replace:
            _try_exchange(staging, final)
    except OSError as error:
        raise CheckpointError(f"can't write a checkpoint into {final.parent}: {error}") from error
    descriptor = _lock(staging)
    if descriptor is not None:
        _held[staging] = descriptor
    return staging


def publish(staging: Path, final: Path, *, replace: bool = False) -> None:
    """Give a flushed directory its final name, and make the name durable; what it replaces lies in `staging` then.

    Raises:
        CheckpointError: if something has taken the final name meanwhile, or what is to be replaced is gone; what was
            written stays in `staging`.
    """
    if not replace and os.path.lexists(final):  # a rename would replace an empty directory
        raise CheckpointError(f"{final} was taken meanwhile; what was written stays in {staging}")
    try:
        if replace:
            _exchange(staging, final)
        else:
            staging.rename(final)
    except OSError as error:
        raise CheckpointError(f"can't rename {staging} to {final}: {error}") from error
    storage.fsync_path(final.parent)
    end(staging)


def end(staging: Path) -> None:
    """Say that a staging directory is no longer written to."""
    if staging in _held:
        os.close(_held.pop(staging))


def _lock(directory: Path) -> int | None:
    """An open directory with a lock on it; None if somebody else holds it, or the filesystem has no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_if_left(staging: Path) -> None:
    try:
        descriptor = _lock(staging)
    except FileNotFoundError:  # its own process was faster
        return
    if descriptor is not None:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _try_exchange(staging: Path, final: Path) -> None:
    """Find out before anything is written whether two directories can be exchanged here."""
    first, second = staging / "first", staging / "second"
    first.mkdir()
    second.mkdir()
    try:
        _exchange(first, second)
    except OSError as error:
        shutil.rmtree(staging)
        raise CheckpointError(
            f"{final} exists, and this filesystem can't exchange two directories in one step ({error.strerror}): a "
            "crash could leave neither. Give each checkpoint a name of its own, such as step-1000"
        ) from error
    first.rmdir()
    second.rmdir()


def _exchange(first: Path, second: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
