"""Zarr groups of any program, versions 2 and 3, by TensorStore: every array of numbers is a tensor, by its path."""

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
"""What marks a node: of version 3, a group and an array of version 2."""

_DEEPEST = 100

LONE = "array"
"""The name of the tensor where there is an array and no group."""


def node(directory: Path) -> dict[str, Any] | None:
    """What a directory says of itself, with its version; None if it is no node of zarr."""
    for name in METADATA:
        try:
            found = json.loads((directory / name).read_text())
        except (OSError, ValueError, RecursionError):
            continue
        version = found.get("zarr_format") if isinstance(found, dict) else None
        if version == 3 and name == METADATA[0] and found.get("node_type") in {"group", "array"}:
            return dict(found)
        if version == 2 and name != METADATA[0]:
            return dict(found) | {"node_type": "group" if name == ".zgroup" else "array"}
    return None


def has_dtypes(directory: Path, count: int) -> bool:
    """Whether there are so many arrays, each with a dtype among its attributes, as `zarr_python` writes them."""
    arrays = _arrays(directory, "")
    return len(arrays) == count and all("dtype" in (found.get("attributes") or {}) for _, found in arrays)


def layout(directory: Path) -> tuple[Layout, list[str]]:
    """The tensors of a group and the groups in it, and the paths of the arrays that are none.

    Raises:
        CheckpointError: if an array's metadata are damaged.
    """
    tensors: list[TensorLayout] = []
    left_out: list[str] = []
    for name, found in _arrays(directory, ""):
        dtype = _dtype_of(found)
        try:
            shape = tuple(map(int, found["shape"]))
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory} is damaged: array {name!r} has no shape") from error
        if dtype:
            tensors.append(TensorLayout(name, shape, dtype))
        else:
            left_out.append(name)
    return tuple(tensors), left_out


def load(directory: Path, names: Collection[str] | None) -> tuple[State, list[str]]:
    """The tensors of these names, or all, and the paths that were left out. Chunks that nobody wrote are fill values.

    Raises:
        CheckpointError: if a name isn't known, or TensorStore can't read an array.
    """
    import tensorstore as ts

    known, left_out = layout(directory)
    chosen = select([each.name for each in known], names, directory)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    try:
        stores = wait_all(ts.open(_spec(directory, name), open=True, read=True, context=context) for name in chosen)
        return {name: _owned(store.read().result()) for name, store in zip(chosen, stores, strict=True)}, left_out
    except Exception as error:  # TensorStore raises one of many kinds
        raise CheckpointError(f"can't read the arrays of {directory}: {error}") from error


def _arrays(directory: Path, prefix: str, depth: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Every array and its metadata, in the order of their paths; links to directories are not followed."""
    found = node(directory)
    if found is None:
        return []
    if depth > _DEEPEST:
        raise CheckpointError(f"{directory} lies more than {_DEEPEST} groups deep, which is not followed")
    if found["node_type"] == "array":
        return [(prefix or LONE, found)]
    with os.scandir(directory) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return [
        each for name in below for each in _arrays(directory / name, f"{prefix}/{name}" if prefix else name, depth + 1)
    ]


def _dtype_of(found: dict[str, Any]) -> str:
    """Torch's name of an array's dtype; empty if it has none."""
    told = found.get("data_type" if found["zarr_format"] == 3 else "dtype")
    if not isinstance(told, str):
        return ""
    if found["zarr_format"] == 2 and told not in dtypes.BYTES_PER_ELEMENT:
        try:
            told = np.dtype(told).name
        except TypeError:
            return ""
    return told if told in dtypes.BYTES_PER_ELEMENT else ""


def _spec(directory: Path, name: str) -> dict[str, Any]:
    found = node(directory)
    path = directory if found and found["node_type"] == "array" else directory / name
    version = (node(path) or {}).get("zarr_format")
    return {"driver": "zarr3" if version == 3 else "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}


def _owned(array: np.ndarray[Any, Any]) -> Any:
    """A tensor with memory of torch's own."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False) if array.dtype.kind in "iufc" else array
    return dtypes.to_torch(native).clone()
