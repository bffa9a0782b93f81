"""Reads zarr groups of any program, versions 2 and 3, with TensorStore: every array of numbers is a tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.formats.tensorstore_futures import wait_all
from ckpt.state import dtypes
from ckpt.state.layout import Layout, TensorLayout

if TYPE_CHECKING:
    from ckpt.state.layout import State

METADATA = ("zarr.json", ".zgroup", ".zarray")
"""The metadata files of a node: of version 3, of a group of version 2, of an array of version 2."""

_DEEPEST = 100

LONE = "array"
"""The name of the tensor if the directory is an array and not a group."""


def node(directory: Path) -> dict[str, Any] | None:
    """Return the metadata of a zarr group or array, with `node_type` for both versions; None for other directories."""
    for name in METADATA:
        try:
            metadata = json.loads((directory / name).read_text())
        except (OSError, ValueError, RecursionError):
            continue
        version = metadata.get("zarr_format") if isinstance(metadata, dict) else None
        if version == 3 and name == METADATA[0] and metadata.get("node_type") in {"group", "array"}:
            return dict(metadata)
        if version == 2 and name != METADATA[0]:
            return dict(metadata) | {"node_type": "group" if name == ".zgroup" else "array"}
    return None


def has_dtypes(directory: Path, count: int) -> bool:
    """Return whether there are `count` arrays, all with a dtype in their attributes, as `zarr_python` writes them."""
    arrays = _arrays(directory, "")
    return len(arrays) == count and all("dtype" in (metadata.get("attributes") or {}) for _, metadata in arrays)


def layout(directory: Path) -> tuple[Layout, list[str]]:
    """Return the tensors of a group and its subgroups, and the paths of the arrays that hold no numbers.

    Raises:
        CheckpointError: if an array's metadata is damaged.
    """
    tensors: list[TensorLayout] = []
    left_out: list[str] = []
    for name, metadata in _arrays(directory, ""):
        dtype = _dtype_of(metadata)
        try:
            shape = tuple(map(int, metadata["shape"]))
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory} is damaged: array {name!r} has no shape") from error
        if dtype:
            tensors.append(TensorLayout(name, shape, dtype))
        else:
            left_out.append(name)
    return tuple(tensors), left_out


def load(directory: Path, names: Collection[str] | None) -> tuple[State, list[str]]:
    """Load tensors, and return the paths of the arrays that were left out, too. Missing chunks have the fill value.

    Args:
        directory: of the group.
        names: of the tensors; None for all.

    Raises:
        CheckpointError: if there is no tensor of a name, or TensorStore can't read an array.
    """
    import tensorstore as ts

    known, left_out = layout(directory)
    chosen = select([tensor.name for tensor in known], names, directory)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    try:
        stores = wait_all(ts.open(_spec(directory, name), open=True, read=True, context=context) for name in chosen)
        return {name: _owned(store.read().result()) for name, store in zip(chosen, stores, strict=True)}, left_out
    except Exception as error:  # TensorStore raises errors of many types
        raise CheckpointError(f"can't read the arrays of {directory}: {error}") from error


def _arrays(directory: Path, prefix: str, depth: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """List the arrays with their metadata in the order of their paths, without following links to directories."""
    metadata = node(directory)
    if metadata is None:
        return []
    if depth > _DEEPEST:
        raise CheckpointError(f"{directory} is nested more than {_DEEPEST} groups deep, which is not followed")
    if metadata["node_type"] == "array":
        return [(prefix or LONE, metadata)]
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return [
        array
        for name in names
        for array in _arrays(directory / name, f"{prefix}/{name}" if prefix else name, depth + 1)
    ]


def _dtype_of(metadata: dict[str, Any]) -> str:
    """Return torch's name of an array's dtype; an empty text if torch has no such dtype."""
    dtype = metadata.get("data_type" if metadata["zarr_format"] == 3 else "dtype")
    if not isinstance(dtype, str):
        return ""
    if metadata["zarr_format"] == 2 and dtype not in dtypes.BYTES_PER_ELEMENT:
        try:
            dtype = np.dtype(dtype).name
        except TypeError:
            return ""
    return dtype if dtype in dtypes.BYTES_PER_ELEMENT else ""


def _spec(directory: Path, name: str) -> dict[str, Any]:
    metadata = node(directory)
    path = directory if metadata and metadata["node_type"] == "array" else directory / name
    version = (node(path) or {}).get("zarr_format")
    return {"driver": "zarr3" if version == 3 else "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}


def _owned(array: np.ndarray[Any, Any]) -> Any:
    """Copy an array to a tensor with memory that torch allocated."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False) if array.dtype.kind in "iufc" else array
    return dtypes.to_torch(native).clone()
