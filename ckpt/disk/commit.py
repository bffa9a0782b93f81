"""Commits a checkpoint: it is written beside its final name, synced and renamed, and so appears whole or not at all.

    with begin(final) as staging:             # an empty directory beside `final`
        strategy.save(state, staging.path)
        staging.flush()                       # files and directories on stable storage
        staging.publish()                     # rename, and sync the parent: from here on it is a checkpoint

With `replaces`, the new checkpoint and the old one are exchanged in a single step, or a link leads to the new one
instead of the old one (`ckpt.disk.versions`). Of several saves to one name the first to publish wins. A directory whose
name begins with `.partial-` is never a checkpoint.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ckpt.disk import durable, leftovers, renames, versions, writeback
from ckpt.disk.leftovers import Lock
from ckpt.disk.pinned import Identity, identity
from ckpt.errors import CheckpointError

_MOST_ATTEMPTS = 20
"""Until a new directory is locked, another save may remove it as a leftover."""

_PATIENCE_S = 10
"""How long to wait for another save that is publishing under the same name, which takes two system calls."""


def begin(final: Path, *, replaces: Identity | None = None) -> Staging:
    """Make an empty directory beside `final`, on the same filesystem, to write into.

    Directories that interrupted saves of the same name left are removed if they are certainly unused.

    Args:
        final: the checkpoint's name.
        replaces: the directory that has the name now and is to be replaced; None if the name is free.

    Raises:
        CheckpointError: if the name is taken by anything else, if a replacement isn't possible on this filesystem, or
            if no directory can be made there.
    """
    if os.path.lexists(final) and replaces is None:
        raise CheckpointError(
            f"{final} exists already, made by another save or another program: give the checkpoint another name, or "
            "move the old one away"
        )
    try:
        leftovers.sweep(final)
        versions.sweep(final)
        staging = _new(final, replaces)
    except OSError as error:
        raise CheckpointError(f"can't write a checkpoint into {final.parent}: {error}") from error
    if replaces is not None:
        try:
            staging.choose_replacement()
        except OSError as error:
            staging.discard()
            raise CheckpointError(f"can't find out how to replace {final}, which is as it was: {error}") from error
        except BaseException:
            staging.discard()
            raise
    return staging


def beside(final: Path) -> Staging:
    """Make a further directory beside `final`, for what another rank of the same save writes.

    Raises:
        CheckpointError: if no directory can be made there.
    """
    try:
        return _new(final, None)
    except OSError as error:
        raise CheckpointError(f"can't write a checkpoint into {final.parent}: {error}") from error


def _new(final: Path, replaces: Identity | None) -> Staging:
    """Make a directory, and lock it: an unlocked directory is known to be a leftover."""
    for _ in range(_MOST_ATTEMPTS):
        path = leftovers.new_path(final)
        path.mkdir()  # with the permissions of any new directory: mkdtemp's would hide the checkpoint from its group
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed as a leftover before it was locked
            continue
        staging = Staging(path, final, replaces, descriptor)
        if leftovers.lock(descriptor) is not Lock.HELD and identity(path) == staging.identity:
            return staging
        os.close(descriptor)
    raise OSError(errno.EAGAIN, f"{_MOST_ATTEMPTS} new directories were removed by other saves")


class Staging:
    """A directory beside a checkpoint's final name, in which the checkpoint is written.

    Attributes:
        path: the directory.
        final: the checkpoint's name.
    """

    def __init__(self, path: Path, final: Path, replaced: Identity | None, descriptor: int) -> None:
        self.path, self.final = path, final
        self.identity = identity(descriptor)
        self._has_links = os.fstat(descriptor).st_nlink > 0  # not every filesystem counts them
        self._replaced = replaced
        self._replacement: versions.Replacement | None = None
        self._descriptor = descriptor
        self._is_published = self._is_durable = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def choose_replacement(self) -> None:
        """Find out, before anything is written, how the earlier checkpoint can be replaced here.

        Raises:
            CheckpointError: if it can't be.
            OSError: if the directory can't be written to.
        """
        if versions.version_of(self.final) or not renames.can_exchange(self.path):
            if not renames.can_link(self.path):
                raise CheckpointError(
                    f"{self.final} exists, and this filesystem can neither exchange two directories nor make symbolic "
                    "links: a crash could leave neither checkpoint. Give each checkpoint a name of its own, such as "
                    "step-1000"
                )
            self._replacement = versions.Replacement(self.path, self.final)

    def flush(self, *, files: bool = True) -> None:
        """Bring everything to stable storage: the files, unless they are there already, and the directories.

        Raises:
            OSError: if the kernel reports that something in this directory, or in its filesystem since `begin`, could
                not be written.
        """
        durable.flush(self.path, files=files)
        writeback.raise_errors(self._descriptor)

    def collect(self, directory: Path, files: Collection[str]) -> None:
        """Move the files of another rank's directory into this one, and remove that directory.

        Raises:
            CheckpointError: if one of them isn't there.
        """
        if directory == self.path:
            return
        try:
            for file in files:
                (directory / file).rename(self.path / file)
            directory.rmdir()
        except OSError as error:
            raise CheckpointError(
                f"can't collect what a rank wrote to {directory} ({error}): all ranks must write to the same filesystem"
            ) from error

    def publish(self) -> None:
        """Give the flushed directory its final name durably; `path` then has what it replaced.

        Raises:
            CheckpointError: if another save was faster, or the rename fails; the message names what has the name now.
        """
        if self._was_removed():
            raise CheckpointError(f"{self.path} was removed while it was being written: {self.final} is as it was")
        try:
            if self._replaced is None or not os.path.lexists(self.final):
                _rename(self.path, self.final)
            else:
                self._replace(self._replaced)
        except OSError as error:
            if identity(self.final) != self.identity:  # some network filesystems report an error although it succeeded
                raise CheckpointError(
                    f"can't rename {self.path} to {self.final}, which is as it was: {error}"
                ) from error
        self._is_published = True
        try:
            durable.fsync_path(self.final.parent)
        except OSError as error:
            old = self._replacement.old if self._replacement else self.path
            kept = "" if self._replaced is None else f"; the one that it replaced is kept in {old} until the next save"
            raise CheckpointError(
                f"{self.final} is the new checkpoint, but its directory could not be synced ({error}): a power cut may "
                f"still take the name back{kept}"
            ) from error
        self._is_durable = True
        self.release()

    def _was_removed(self) -> bool:
        """Whether `path` leads to another directory than the one that was made, or to none."""
        try:
            links = os.fstat(self._descriptor).st_nlink
        except OSError:  # an NFS server reports a stale handle
            return True
        # On NFS a new directory may have the inode number of a removed one, although that is held open.
        return identity(self.path) != self.identity or (self._has_links and links == 0)

    def _replace(self, replaced: Identity) -> None:
        with _locked(self.final):
            if self._replacement and self._replacement.is_current(replaced):
                self._replacement.publish(replaced)
                if identity(self.final) == self.identity:
                    return
            elif not self._replacement and identity(self.final) == replaced:
                renames.exchange(self.path, self.final)
                if identity(self.path) == replaced:
                    return
                renames.exchange(self.path, self.final)  # the locks don't reach the other save's host
        raise CheckpointError(
            f"{self.final} was replaced by another save meanwhile, which is what lies there: what this one wrote is "
            "removed. Let one process save under a name"
        )

    def release(self) -> None:
        """Give up the lock on the directory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Remove what an unpublished save wrote, or what a published one replaced.

        What was replaced is kept as long as the replacement isn't durable: a power cut could undo it.
        """
        self.release()
        is_published = self._is_published or identity(self.final) == self.identity
        if self._replaced is not None and is_published and not self._is_durable:
            try:
                durable.fsync_path(self.final.parent)
            except OSError:
                return
        if self._replacement and is_published:
            self._replacement.retire()
        elif self._replacement:
            self._replacement.withdraw()
        shutil.rmtree(self.path, ignore_errors=True)  # the next save tries again to remove the rest


def _rename(staging: Path, final: Path) -> None:
    """Rename if the final name is free: a plain rename would replace an empty directory."""
    if os.path.lexists(final):  # some filesystems ignore the flag
        raise _taken(final)
    try:
        renames.rename_to_free(staging, final)
    except FileExistsError:
        raise _taken(final) from None
    except OSError as error:
        if error.errno not in renames.UNSUPPORTED:
            raise
        if os.path.lexists(final):
            raise _taken(final) from None
        staging.rename(final)


def _taken(final: Path) -> CheckpointError:
    return CheckpointError(
        f"{final} was taken by another save, or another program, meanwhile: what lies there stays, what this save "
        "wrote is removed. Let one process save under a name"
    )


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Lock the checkpoint that is to be replaced, so that one save at a time replaces it.

    Raises:
        CheckpointError: if another save doesn't release the lock.
    """
    descriptor = os.open(final, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _PATIENCE_S
        while leftovers.lock(descriptor) is Lock.HELD:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{final} is locked by another process, which has held it for {_PATIENCE_S} s: it is as it was"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
