"""Loads and inspects checkpoints that other programs wrote, and warns of what is left out.

Files are recognised by their content. Names only determine where to look first: many programs write a `metadata.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt import manifest
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.foreign_readers import Reader, is_readable, listed, reader_of, state_files
from ckpt.state.layout import Layout

_KNOWN = (
    "Supported are safetensors (Hugging Face), torch.distributed.checkpoint, torch.save, HDF5 and zarr: give such a "
    "file, or the directory that contains it"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The facts about a foreign checkpoint that are known without reading its data."""

    format: str
    """The strategy that reads it, or another name of the format."""
    tensors: Layout | None
    """The layout of its state; None if only a load can determine it."""
    plain_values: int


def load(
    path: Path,
    names: Collection[str] | None,
    options: dict[str, Any],
    *,
    shown: Path | None = None,
    verify: bool = True,
) -> Any:
    """Load a checkpoint of another program: the state, or selected tensors in a flat dict.

    Warns of content, and of other files in the directory, that was not loaded.

    Args:
        path: a directory or a file.
        names: of the tensors to load, as `look` lists them; None for the whole state.
        options: of the strategy that reads it.
        shown: the path for messages.
        verify: compare checksums, if the format has any.

    Raises:
        CheckpointError: if the format is unknown, or the checkpoint can't be read.
    """
    shown = shown or path
    reader = _reader_of(path, shown)
    if not verify and reader.format == "safetensors_tuned":
        options = {"verify": False} | options
    state, left_out = reader.load(names, options)
    if left_out:
        warnings.warn(f"{shown}: not loaded: {left_out}", CheckpointWarning, stacklevel=3)
    _warn_of_files_beside(path, reader, shown)
    return state


def look(path: Path, *, shown: Path | None = None) -> Seen:
    """Inspect a checkpoint of another program without reading its data; warns of what a load would leave out.

    Raises:
        CheckpointError: if the format is unknown, or the checkpoint is damaged.
    """
    shown = shown or path
    reader = _reader_of(path, shown)
    _warn_of_files_beside(path, reader, shown)
    tensors, plain_values = reader.look()
    return Seen(reader.format, tensors, plain_values)


def _reader_of(path: Path, shown: Path) -> Reader:
    reader = reader_of(path)
    if reader is None:
        content = _content_of(path, shown) if path.is_dir() else "no format fits its content"
        raise CheckpointError(f"{shown} is not a checkpoint in a known format: {content}. {_KNOWN}")
    return reader


def _warn_of_files_beside(path: Path, reader: Reader, shown: Path) -> None:
    if not path.is_dir():
        return
    others = [file.name for file in state_files(path) if file.name not in reader.files]
    if not others:
        return
    example = next((name for name in others if is_readable(path / name) and not name.endswith(".bin")), others[0])
    more = [name for name in ("trainer_state.json",) if (path / name).is_file()]
    warnings.warn(
        f"{shown}: only the {reader.format} files are loaded; not loaded: {listed([*others, *more])}. "
        f"Load one by its own path: ckpt.load({str(shown / example)!r})",
        CheckpointWarning,
        stacklevel=4,
    )


def _content_of(path: Path, shown: Path) -> str:
    """Describe a directory's content for a message, and what of it can be loaded."""
    entries = sorted(entry.name for entry in path.iterdir())
    if not entries:
        return "it is empty"
    loadable = [file.name for file in state_files(path) if is_readable(file)]
    loadable += [name for name in entries if _looks_like_one(path / name)]
    if loadable:
        return f"load one by its own path, such as {str(shown / loadable[0])!r}, of {listed(loadable)}"
    return f"it has {listed(entries)}, and no format fits"


def _looks_like_one(path: Path) -> bool:
    try:
        return path.is_dir() and (manifest.read(path) is not None or reader_of(path) is not None)
    except CheckpointError:  # in a known format, and damaged
        return True
    except OSError:
        return False
