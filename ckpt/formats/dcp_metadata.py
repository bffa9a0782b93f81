"""Reads DCP's `.metadata` without running code, and checks that it is consistent before anything is loaded by it."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.errors import CheckpointError
from ckpt.formats import torch_files
from ckpt.state.layout import TensorLayout

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

FILE = ".metadata"

_DCP = "torch.distributed.checkpoint"
_DEEPEST = 200
"""Deeper states are loaded flat."""

_HARMLESS = {
    f"{_DCP}.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size"},  # and the dtypes
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}  # fmt: skip


class _HarmlessUnpickler(pickle.Unpickler):
    """Creates only objects of the classes that DCP's metadata consist of; DCP itself unpickles anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Find a class or a dtype, if it is harmless."""
        import torch

        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint should")
        return super().find_class(module, name)


def is_file_name(name: str) -> bool:
    """Return whether a checkpoint of DCP may have a file of that name."""
    return re.fullmatch(r"__\d+_\d+\.distcp|(__\d+)?\.metadata(\.tmp)?", name) is not None


def rank_of(name: str) -> int:
    """Return the rank that wrote a file of a checkpoint, `__3_0.distcp` say."""
    return int(name.removeprefix("__").partition("_")[0])


def read(directory: Path) -> Metadata:
    """Read the metadata, and check that chunks cover all tensors.

    Raises:
        CheckpointError: if a file outside the directory is named, or a tensor's chunks aren't all of it.
        Exception: whatever unpickling raises.
    """
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

    path = directory / FILE
    with path.open("rb") as file:
        metadata = _HarmlessUnpickler(file).load()
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CheckpointError(f"{path} is damaged: it holds no metadata of torch.distributed.checkpoint")
    outside = [info.relative_path for info in metadata.storage_data.values() if "/" in info.relative_path]
    if outside:
        raise CheckpointError(f"{path} names a file outside its directory: {outside[0]!r}")
    for key, tensor in tensors_of(metadata).items():
        problem = _problem(tensor)
        if not problem and any(
            math.prod(chunk.sizes) and MetadataIndex(key, chunk.offsets) not in metadata.storage_data
            for chunk in tensor.chunks
        ):
            problem = "one of its chunks is in no file"
        if problem:
            raise CheckpointError(f"{path} is damaged: tensor {key!r}: {problem}")
    return metadata


def tensors_of(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """List the tensors by key; the other entries are plain values."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = metadata.state_dict_metadata.items()
    return {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}


def layouts(known: Mapping[str, TensorStorageMetadata]) -> dict[str, TensorLayout]:
    """Return the layouts of tensors, given DCP's metadata of them by key."""
    return {
        key: TensorLayout(key, tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
        for key, entry in known.items()
    }


def values_of(metadata: Metadata, directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the plain values, which are `torch.save` archives; returns them, and why others can't be read, by key.

    Raises:
        OSError: if a file can't be read.
    """
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    tensors = tensors_of(metadata)
    stored = {index.fqn: info for index, info in metadata.storage_data.items() if index.fqn not in tensors}
    for key in metadata.state_dict_metadata:
        if key in tensors:
            continue
        info = stored.get(key)
        if info is None or info.transform_descriptors:
            unread[key] = "it is in no file" if info is None else f"it is packed by {info.transform_descriptors}"
            continue
        with (directory / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            content = io.BytesIO(file.read(info.length))
        try:
            values[key] = torch_files.read(content)
        except CheckpointError as error:
            unread[key] = str(error)
    return values, unread


def nested(flat: Mapping[str, Any], metadata: Metadata) -> Any:
    """Rebuild the nested state from DCP's flat one and the paths that it stored by key; flat if it stored none.

    Elements of a list that weren't read are None.
    """
    paths = metadata.planner_data
    if not isinstance(paths, dict) or not flat.keys() <= paths.keys():
        return dict(flat)
    root = _Branch()
    for key, value in flat.items():
        path, node = paths[key], root
        if not isinstance(path, tuple) or not 0 < len(path) < _DEEPEST:
            return dict(flat)
        for step in path[:-1]:
            below = node.setdefault(step, _Branch())
            if not isinstance(below, _Branch):
                return dict(flat)
            node = below
        if path[-1] in node:
            return dict(flat)
        node[path[-1]] = value
    return _containers(root, len(paths))


class _Branch(dict[Any, Any]):
    """A dict or a list of the state, as opposed to a value that is a dict."""


def _containers(branch: _Branch, most: int) -> Any:
    inside = {step: _containers(node, most) if isinstance(node, _Branch) else node for step, node in branch.items()}
    if not all(type(step) is int and 0 <= step < most for step in inside):  # the steps into a dict are strings
        return inside
    return [inside.get(number) for number in range(1 + max(inside))] if inside else {}


def _problem(tensor: TensorStorageMetadata) -> str:
    """Return why the chunks don't cover the tensor: one is outside, two overlap, some are missing; empty if they do."""
    shape = tuple(tensor.size)
    boxes = []
    for chunk in tensor.chunks:
        start, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if len(start) != len(shape) or len(sizes) != len(shape):
            return f"it has {len(shape)} dimensions, and a chunk of it {len(start)} and {len(sizes)}"
        stop = tuple(first + size for first, size in zip(start, sizes, strict=True))
        if min((*start, *sizes), default=0) < 0 or any(last > size for last, size in zip(stop, shape, strict=True)):
            return f"a chunk of {list(sizes)} at {list(start)} is not inside its shape {list(shape)}"
        if math.prod(sizes):
            boxes.append((start, stop))
    held = sum(math.prod(b - a for a, b in zip(start, stop, strict=True)) for start, stop in boxes)
    if held != math.prod(shape):
        return f"its chunks have {held:,} elements, expected {math.prod(shape):,}"
    return "two of its chunks overlap" if _overlap(boxes) else ""


def _overlap(boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Return whether two boxes share an element; compares those that meet in the dimension with the most starts."""
    if len(boxes) < 2 or not boxes[0][0]:
        return len(boxes) > 1
    dimension = max(range(len(boxes[0][0])), key=lambda number: len({start[number] for start, _ in boxes}))
    active: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for start, stop in sorted(boxes, key=lambda box: box[0][dimension]):
        active = [box for box in active if box[1][dimension] > start[dimension]]
        if any(_meet(box, (start, stop)) for box in active):
            return True
        active.append((start, stop))
    return False


def _meet(one: tuple[tuple[int, ...], ...], other: tuple[tuple[int, ...], ...]) -> bool:
    return all(a < d and c < b for a, b, c, d in zip(*one, *other, strict=True))
