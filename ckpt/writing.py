"""Writes a checkpoint: to a staging directory, synced, read back if its library hides errors, and then published."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckpt import manifest
from ckpt.disk import commit, durable, full, versions
from ckpt.disk.pinned import Identity, identity
from ckpt.errors import CheckpointError
from ckpt.manifest import Manifest
from ckpt.reading import Content, checker, of_one
from ckpt.state import dtypes
from ckpt.state.layout import TensorLayout
from ckpt.strategy import Strategy
from ckpt.threads import explained

_NOT_OURS = "{} exists and is not a checkpoint of this package: give the checkpoint another name, or move it away"

_READ_BACK_BYTES = 256 * 2**20


def write(content: Content, final: Path, strategy: Strategy, notes: Mapping[str, Any] | None = None) -> None:
    """Write a state durably as a checkpoint; an earlier checkpoint of the same name is replaced.

    Args:
        content: the state.
        final: the checkpoint's name.
        strategy: ready to use.
        notes: kept in the manifest.

    Raises:
        CheckpointError: as `ckpt.save` does.
    """
    with staged(final) as staging:
        _fill(staging, content, strategy, notes or {})


@contextmanager
def staged(final: Path) -> Iterator[commit.Staging]:
    """Yield a directory to write a checkpoint into; it is published afterwards, unless writing raises an error.

    Raises:
        CheckpointError: as `ckpt.save` does.
    """
    try:
        final = versions.resolved(final)
        versions.finish(final)
        replaces = _replaceable(final)
        durable.make_directories(final.parent)
        with commit.begin(final, replaces=replaces) as staging:
            try:
                yield staging
            except Exception as error:  # a full disk, or any error of a library
                is_ours = isinstance(error, CheckpointError)
                text = str(error) if is_ours else f"can't save {final}: {type(error).__name__}: {error}"
                raise CheckpointError(full.named(text, error, staging.path)) from error
            staging.publish()
    except CheckpointError as error:
        raise CheckpointError(explained(str(error))) from error
    except Exception as error:
        raise CheckpointError(explained(f"can't save {final}: {type(error).__name__}: {error}")) from error


def _fill(staging: commit.Staging, content: Content, strategy: Strategy, notes: Mapping[str, Any]) -> None:
    """Write a checkpoint into a staging directory, and bring it to stable storage."""
    tensors = content.tensors
    written, checksums = strategy.save_checked(tensors, staging.path)
    Manifest(
        strategy=strategy.name,
        options=strategy.options,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        tensors=tuple(TensorLayout(name, tuple(t.shape), dtypes.name_of(t)) for name, t in tensors.items()),
        checksums=checksums,
        tied=content.tied,
        rest=content.rest,
        files=sizes_of(written, staging.path),
        notes=dict(notes),
    ).write(staging.path)
    staging.flush(files=not strategy.capabilities.syncs_files)
    if not strategy.capabilities.reports_close_errors:
        _read_back(strategy, tensors, checksums, staging.path)


def _read_back(strategy: Strategy, tensors: Mapping[str, Any], checksums: Mapping[str, str], directory: Path) -> None:
    """Read a checkpoint back, some tensors at a time, and compare checksums."""
    batch: list[str] = []
    batch_bytes = 0
    for number, (name, tensor) in enumerate(tensors.items(), 1):
        batch.append(name)
        batch_bytes += tensor.nbytes
        if batch_bytes > _READ_BACK_BYTES or number == len(tensors):
            try:
                strategy.load_checked(directory, batch, checker(checksums, directory))
            except CheckpointError as error:
                raise CheckpointError(
                    f"the files in {directory} do not hold what was written, though no error was reported: a quota was "
                    f"reached, or a network filesystem lost data when a file was closed ({error})"
                ) from error
            batch, batch_bytes = [], 0


def sizes_of(written: Collection[Path], directory: Path) -> dict[str, int]:
    """Return the files of a checkpoint with their sizes; all written files must exist."""
    sizes = manifest.files_of(directory)
    lost = sorted({str(path.relative_to(directory)) for path in written} - sizes.keys())
    if lost:
        raise CheckpointError(
            f"{lost[0]} was removed from {directory} while the checkpoint was being written, by another process; an "
            "earlier checkpoint of that name is unchanged"
        )
    return sizes


def _replaceable(final: Path) -> Identity | None:
    """Return the identity of the checkpoint that a save replaces; None if the name is free.

    Raises:
        CheckpointError: if the name belongs to anything but a checkpoint of this package without foreign files.
    """
    if not os.path.lexists(final):
        return None
    if not final.is_dir():
        raise CheckpointError(_NOT_OURS.format(final))
    return of_one(final, _require_ours)


def _require_ours(path: Path, _: Path, known: Manifest | None) -> Identity | None:
    if known is None:
        raise CheckpointError(_NOT_OURS.format(path))
    others = sorted(manifest.files_of(path).keys() - known.files.keys())
    if others:
        raise CheckpointError(
            f"{path} holds files that don't belong to the checkpoint ({', '.join(others[:3])}), and replacing it would "
            "delete them: move them away, or give the new checkpoint another name"
        )
    return identity(path)
