"""Paths without a manifest of ours: what they are, how they are loaded, and what of them is left.

What counts is what the files contain. A name is only where to look first: anybody may call a file `metadata.json`.
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
    "Known are safetensors (Hugging Face), torch.distributed.checkpoint, torch.save, HDF5 and zarr: give such a file, "
    "or the directory that has it at its top"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a foreign checkpoint without reading its data."""

    format: str
    """The strategy that reads it, or another name of the format."""
    tensors: Layout | None
    """None where only a load would tell."""
    plain_values: int


def load(
    path: Path,
    names: Collection[str] | None,
    options: dict[str, Any],
    *,
    shown: Path | None = None,
    verify: bool = True,
) -> Any:
    """Load what another program wrote: the state, or the tensors of these names in a flat dict.

    Warns of what lies beside it, or in it, and was not loaded.

    Args:
        path: a directory or a file.
        names: as `look` lists them.
        options: of the strategy that reads it.
        shown: the path as messages should have it.
        verify: compare checksums, where a format has some.

    Raises:
        CheckpointError: if it is nothing that is known, or can't be read.
    """
    shown = shown or path
    reader = _reader_of(path, shown)
    if not verify and reader.format == "safetensors_direct":
        options = {"verify": False} | options
    state, left_out = reader.load(names, options)
    if left_out:
        warnings.warn(f"{shown}: not loaded: {left_out}", CheckpointWarning, stacklevel=3)
    _warn_of_files_beside(path, reader, shown)
    return state


def look(path: Path, *, shown: Path | None = None) -> Seen:
    """What another program wrote, without its data; warns of what a load would leave.

    Raises:
        CheckpointError: if it is nothing that is known, or damaged.
    """
    shown = shown or path
    reader = _reader_of(path, shown)
    _warn_of_files_beside(path, reader, shown)
    tensors, plain_values = reader.look()
    return Seen(reader.format, tensors, plain_values)


def _reader_of(path: Path, shown: Path) -> Reader:
    found = reader_of(path)
    if found is None:
        what = _what_lies_in(path, shown) if path.is_dir() else "no format fits its content"
        raise CheckpointError(f"{shown} is no checkpoint that is known here: {what}. {_KNOWN}")
    return found


def _warn_of_files_beside(path: Path, reader: Reader, shown: Path) -> None:
    if not path.is_dir():
        return
    beside = [file.name for file in state_files(path) if file.name not in reader.files]
    if not beside:
        return
    example = next((name for name in beside if is_readable(path / name) and not name.endswith(".bin")), beside[0])
    more = [name for name in ("trainer_state.json",) if (path / name).is_file()]
    warnings.warn(
        f"{shown}: beside the {reader.format} files, and not loaded: {listed([*beside, *more])}. "
        f"Load one by its own path: ckpt.load({str(shown / example)!r})",
        CheckpointWarning,
        stacklevel=4,
    )


def _what_lies_in(path: Path, shown: Path) -> str:
    """What a user sees there, and what of it can be loaded."""
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
    except CheckpointError:  # of a known format, and damaged
        return True
    except OSError:
        return False
