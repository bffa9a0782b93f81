"""Removes checkpoints of a series, and what interrupted saves and removals left."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ckpt.disk import durable, leftovers, versions
from ckpt.series import steps


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint: its name disappears first, in a single step, so that nobody sees a part of it.

    Raises:
        OSError: if it can't be removed; what is left of it is no checkpoint any more, and `sweep` removes it.
    """
    # A name that was saved twice, where two directories can't be exchanged, is a link to the checkpoint.
    version = versions.version_of(checkpoint)
    if version and versions.has_other_links(version, checkpoint):
        checkpoint.unlink()
        durable.fsync_path(checkpoint.parent)
        return
    aside = leftovers.new_path(checkpoint)
    (version or checkpoint).rename(aside)
    if version:
        checkpoint.unlink()
    durable.fsync_path(checkpoint.parent)
    shutil.rmtree(aside, ignore_errors=True)  # another program's `sweep` may be faster
    if os.path.lexists(aside):
        raise OSError(errno.EBUSY, "could not be removed whole", str(aside))


def sweep(directory: Path) -> None:
    """Remove what ended programs left in a series' directory, where it is certain that none of them still writes."""
    with suppress(FileNotFoundError):
        for leftover in [*leftovers.in_directory(directory), *versions.in_directory(directory)]:
            if steps.step_of(leftover.checkpoint) is not None:
                leftovers.remove(leftover)
        for step in steps.steps_in(directory):
            if versions.leads_nowhere(name := steps.path_of(directory, step)):
                name.unlink()
        for link in steps.unfinished_links(directory):
            link.unlink(missing_ok=True)
