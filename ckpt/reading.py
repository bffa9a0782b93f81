"""Reads a checkpoint: checks that it is complete, verifies it, and starts over if it is replaced meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ckpt import manifest, registry
from ckpt.disk import leftovers, versions
from ckpt.disk.pinned import Pinned, pinned
from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.manifest import Manifest
from ckpt.state import dtypes
from ckpt.strategy import Strategy
from ckpt.threads import explained

_MOST_REPLACEMENTS = 100

_MOST_STALE_LINKS = 20
_STALE_LINK_S = 0.01
"""A link may lead to a version that was removed meanwhile, and network filesystems show it for a while."""

_Result = TypeVar("_Result")
_Work = Callable[[Path, Path, Manifest | None], _Result]


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a checkpoint of this package."""

    tensors: dict[str, Any]
    """The tensors by name, without those that are tied to others."""
    tied: dict[str, str]
    """The names that are tied to another tensor, and that tensor's name."""
    rest: Any
    """The state without its tensors, as `ckpt.tree.nested.flatten` returns it."""


def created(name: str, options: dict[str, Any]) -> Strategy:
    """Create a strategy that is ready to use.

    Raises:
        CheckpointError: if there is no such strategy, an option is wrong, or a library is missing.
    """
    chosen = registry.create(name, options)
    chosen.prepare()
    return chosen


def path_of(directory: Path | str) -> Path:
    """Return a checkpoint's absolute path, with `~` expanded.

    Raises:
        CheckpointError: if `~user` names an unknown user.
    """
    try:
        return Path(directory).expanduser().absolute()
    except RuntimeError as error:  # `~` of an unknown user
        raise CheckpointError(f"{directory}: {error}") from error


def of_one(final: Path, work: _Work[_Result]) -> _Result:
    """Run `work` on a checkpoint, again from the start if the checkpoint was replaced meanwhile.

    Args:
        final: the checkpoint's path.
        work: gets a path that refers to one checkpoint even if the name is given to another, the path for messages, and
            the manifest; None of what another program wrote.

    Returns:
        What `work` returned, all of it from one checkpoint.

    Raises:
        CheckpointError: if there is no checkpoint, or `work` failed for another reason than a replacement.
    """
    if final.name.startswith(leftovers.PREFIX):
        raise CheckpointError(f"{final} was left by an unfinished save and is not a checkpoint")
    try:
        if final.is_file():
            return work(final, final, None)
    except OSError as error:
        raise CheckpointError(f"can't read {final}: {error}") from error
    return _of_one_directory(final, work)


def _of_one_directory(final: Path, work: _Work[_Result]) -> _Result:
    for attempt in range(_MOST_REPLACEMENTS):
        try:
            with pinned(versions.interrupted(final) or final) as directory:
                try:
                    known = manifest.read(directory.path)
                    # Replaced checkpoints are removed file by file: without its manifest, one looks like another's.
                    if known or directory.is_current:
                        return work(directory.path, final, known)
                except (CheckpointError, OSError) as error:
                    if directory.is_current:
                        raise CheckpointError(_message(directory, error)) from error
        except (FileNotFoundError, NotADirectoryError):
            if attempt >= _MOST_STALE_LINKS or not (os.path.lexists(final) or versions.interrupted(final)):
                raise CheckpointError(
                    f"{final} is not a checkpoint: there is no such directory{_unfinished(final)}"
                ) from None
            time.sleep(attempt * _STALE_LINK_S)
        except OSError as error:
            raise CheckpointError(f"can't open {final}: {error}") from error
    raise CheckpointError(f"{final} was replaced {_MOST_REPLACEMENTS} times while it was being read")


def _message(directory: Pinned, error: Exception) -> str:
    text = explained(directory.named(str(error)))
    return text if isinstance(error, CheckpointError) else f"can't read {directory.name}: {text}"


def _unfinished(final: Path) -> str:
    try:
        left = [leftover.path.name for leftover in leftovers.of(final)]
    except OSError:
        return ""
    return f"; an unfinished save of that name is next to it ({left[0]})" if left else ""


def content_of(
    path: Path, known: Manifest, names: Collection[str] | None, options: dict[str, Any], *, verify: bool
) -> Content:
    """Load tensors of a checkpoint, with those that they are tied to.

    Args:
        path: of the checkpoint.
        known: its manifest.
        names: of the tensors; None for all.
        options: of the strategy.
        verify: compare each tensor's checksum with the manifest's.

    Raises:
        CheckpointError: if the checkpoint lacks a name, is damaged, or incomplete; the message lists what is missing.
    """
    require_complete(path, known)
    chosen = select([*(tensor.name for tensor in known.tensors), *known.tied], names, path)
    owners = {known.tied.get(name, name) for name in chosen}
    wanted = None if names is None else owners
    reader = reader_of(known, options, verify=verify)
    if verify and known.checksums:
        tensors = reader.load_checked(path, wanted, checker(known.checksums, path))
    else:
        tensors = reader.load(path, wanted)
    _compare(known, tensors, owners, path)
    return Content(tensors, {name: known.tied[name] for name in chosen if name in known.tied}, known.rest)


def require_complete(path: Path, known: Manifest) -> None:
    """Check that a checkpoint's files are there, of the sizes that its manifest lists.

    Raises:
        CheckpointError: if one isn't; the message lists what is missing. Or if other nodes have other parts of it.
    """
    if known.part:
        number, count = known.part
        raise CheckpointError(
            f"{path} is part {number + 1} of {count} of a checkpoint, and the others are on other nodes: load the "
            "whole one from the directory to which `Checkpointer` copies it"
        )
    problems = known.problems(path)
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} is incomplete: {'; '.join(problems[:3])}{more}")


def reader_of(known: Manifest, options: dict[str, Any], *, verify: bool) -> Strategy:
    """Create the strategy that reads a checkpoint.

    Raises:
        CheckpointError: if an option is wrong, or a library is missing.
    """
    reader = created(known.strategy, options)
    if verify and not known.checksums and hasattr(reader, "verify"):  # the first version left checksums to strategies
        return created(known.strategy, options | {"verify": True})
    return reader


def checker(checksums: Mapping[str, str], directory: Path) -> Callable[[str, Any], None]:
    """Return a function that compares a loaded tensor with the checksum that was computed when it was saved."""
    from ckpt.state import checksums as computed

    def check(name: str, tensor: Any) -> None:
        if checksums.get(name) != computed.of(tensor):
            raise CheckpointError(f"{directory} is damaged: tensor {name!r} is not what was saved (XXH3 differs)")

    return check


def _compare(known: Manifest, tensors: dict[str, Any], owners: set[str], final: Path) -> None:
    """Compare shapes and dtypes with the manifest's: somebody may have mixed the files of two checkpoints."""
    for layout in known.tensors:
        if layout.name not in owners:
            continue
        tensor = tensors.get(layout.name)
        if tensor is None or (tuple(tensor.shape), dtypes.name_of(tensor)) != (layout.shape, layout.dtype):
            actual = "missing" if tensor is None else f"{dtypes.name_of(tensor)} {list(tensor.shape)}"
            raise CheckpointError(
                f"{final} is damaged: tensor {layout.name!r} is {actual}, expected {layout.dtype} {list(layout.shape)}"
            )
