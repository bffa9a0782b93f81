"""Checkpoints for a training loop: `save`, `load`, `inspect`, `convert`.

    ckpt.save({"model": model.state_dict(), "step": step}, "run/latest")
    state = ckpt.load("run/latest")

A save is atomic: whatever happens at whatever instant, under the final name lies the checkpoint of before or the new
one, whole and on stable storage. Nothing that a file says is executed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt import foreign, manifest
from ckpt.disk import listing
from ckpt.disk.listing import Inventory
from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.reading import Content, content_of, created, of_one, path_of
from ckpt.state.layout import Layout, TensorLayout
from ckpt.writing import write

DEFAULT = "safetensors_direct"


def save(state: Any, directory: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Save a state, durably, as the checkpoint of that name; an earlier one of that name is replaced.

    Of several processes that save under one name at a time, the first to end wins; the others get an error.

    Args:
        state: nested containers of tensors (on any device), numpy arrays and plain values; `ckpt.register` adds classes
            of your own.
        directory: the checkpoint's final name; `~` is the home directory. A symbolic link stays, and what it leads to
            is replaced.
        strategy: how; `python -m ckpt strategies` lists them.
        options: of the strategy.

    Raises:
        CheckpointError: if the state, the strategy or the place can't be used, or writing failed. What lay under the
            name lies there still, unless the message says otherwise.
    """
    from ckpt.tree import nested

    final = path_of(directory)
    chosen = created(strategy, options)
    write(Content(*nested.flatten(state)), final, chosen)


def load(directory: Path | str, names: Collection[str] | None = None, *, verify: bool = True, **options: Any) -> Any:
    """Load a checkpoint: the state as it was saved, or the tensors of these names in a flat dict.

    It is one checkpoint's, whole, whatever is saved under the name meanwhile.

    Args:
        directory: a checkpoint; also a directory or a file that another program wrote, where its format is known:
            safetensors, DCP, `torch.save`, HDF5, zarr. A `CheckpointWarning` says what of it was left out.
        names: as `inspect` lists them.
        verify: compare the checksum of every tensor with the one that was taken when it was saved.
        options: of the strategy.

    Raises:
        CheckpointError: if there is no checkpoint, or it is incomplete (with what is missing) or damaged.
    """
    return of_one(path_of(directory), lambda path, shown: _load(path, shown, names, options, verify=verify))


def _load(path: Path, shown: Path, names: Collection[str] | None, options: dict[str, Any], *, verify: bool) -> Any:
    from ckpt.tree import nested

    known = manifest.read(path) if path.is_dir() else None
    if known is None:
        return foreign.load(path, names, options, shown=shown, verify=verify)
    content = content_of(path, known, names, options, verify=verify)
    order = select([*(tensor.name for tensor in known.tensors), *known.tied], names, path)
    loaded = {name: content.tensors[content.tied.get(name, name)] for name in order}
    return nested.restore(content.rest, loaded) if names is None else nested.restore_named(content.rest, loaded)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a checkpoint without reading its data."""

    strategy: str
    options: dict[str, Any]
    created_utc: str
    """Empty where another program wrote it."""
    tensors: Layout | None
    """None where only a load would tell."""
    plain_values: int
    problems: tuple[str, ...]
    """What is missing; empty if it is complete."""
    files: Inventory


def inspect(directory: Path | str) -> Inspection:
    """Look at a checkpoint without reading its data.

    Raises:
        CheckpointError: if there is none.
    """
    return of_one(path_of(directory), _inspect)


def _inspect(path: Path, shown: Path) -> Inspection:
    from ckpt.tree import nested

    known = manifest.read(path) if path.is_dir() else None
    files = listing.inventory(path)
    if known is None:
        seen = foreign.look(path, shown=shown)
        return Inspection(seen.format, {}, "", seen.tensors, seen.plain_values, (), files)
    layout_of = {tensor.name: tensor for tensor in known.tensors}
    tied = [
        TensorLayout(name, layout_of[owner].shape, layout_of[owner].dtype, owner) for name, owner in known.tied.items()
    ]
    return Inspection(
        strategy=known.strategy,
        options=known.options,
        created_utc=known.created_utc,
        tensors=(*known.tensors, *tied),
        plain_values=nested.plain_values(known.rest),
        problems=tuple(known.problems(path)),
        files=files,
    )


def convert(source: Path | str, destination: Path | str, strategy: str = DEFAULT, **options: Any) -> None:
    """Load a checkpoint, and save it in another way. The state passes through memory, whole.

    What a checkpoint of ours holds of registered classes passes as it is: they need not be known here.

    Raises:
        CheckpointError: as `load` and `save` do.
    """
    begin, end = path_of(source), path_of(destination)
    if begin.resolve() == end.resolve():
        raise CheckpointError(f"{source} can't be converted into itself: give the destination another name")
    chosen = created(strategy, options)
    write(of_one(begin, _content), end, chosen)


def _content(path: Path, shown: Path) -> Content:
    from ckpt.tree import nested

    known = manifest.read(path) if path.is_dir() else None
    if known is None:
        return Content(*nested.flatten(foreign.load(path, None, {}, shown=shown)))
    return content_of(path, known, None, {}, verify=True)
