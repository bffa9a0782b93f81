"""How a checkpoint becomes visible: written beside its final name, synced, renamed — whole or not at all.

    staging = begin(final)            # an empty directory beside `final`
    strategy.save(state, staging)
    storage.flush(staging)            # files and directories on stable storage
    publish(staging, final)           # rename, and sync the parent: from here on it is a checkpoint

A directory whose name begins with `.partial-` is never a checkpoint.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ckpt import storage
from ckpt.errors import CheckpointError

STAGING_PREFIX = ".partial-"


def begin(final: Path) -> Path:
    """Make an empty directory beside `final`, on the same filesystem, to write into.

    Raises:
        CheckpointError: if something has the final name already.
    """
    if os.path.lexists(final):
        raise CheckpointError(f"{final} exists already: give the checkpoint another name, or move the old one away")
    staging = final.parent / f"{STAGING_PREFIX}{secrets.token_hex(8)}"
    staging.mkdir()  # with the permissions of any new directory: mkdtemp's would hide the checkpoint from its group
    return staging


def publish(staging: Path, final: Path) -> None:
    """Give a flushed directory its final name, and make the name durable.

    Raises:
        CheckpointError: if something has taken the final name meanwhile; what was written stays in `staging`.
    """
    if os.path.lexists(final):  # a rename would replace an empty directory
        raise CheckpointError(f"{final} was taken meanwhile; what was written stays in {staging}")
    try:
        staging.rename(final)
    except OSError as error:
        raise CheckpointError(f"can't rename {staging} to {final}: {error}") from error
    storage.fsync_path(final.parent)
