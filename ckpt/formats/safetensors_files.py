"""Which files of a checkpoint hold what, and into which pieces of memory their tensors are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_header, shard_files
from ckpt.formats.safetensors_header import Header
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Fragment, Partition, Shard

FILE = "model.safetensors"

INDEX = "model.safetensors.index.json"
"""The names that transformers gives to a single file, and to the index of several."""

_IN_ROWS = "rows-in-each-of-{:05d}-files.safetensors"
"""The file that an index names for tensors that lie in no file as a whole. There is none: who reads whole tensors fails
there, and is told why, instead of taking a part for the whole."""

_HEAD_BYTES = 2**16
"""Most headers fit, and are read at once."""


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint, in order: those that its index names, or the only one; a file is one by itself.

    Other safetensors files beside a `model.safetensors` are left alone, as transformers does.

    Raises:
        CheckpointError: if one is missing.
    """
    return sorted(path / file for file in set(weight_map.values())) if (weight_map := _index(path)) else [_only(path)]


def headers_of(path: Path) -> dict[Path, Header]:
    """What the files of a checkpoint say of themselves, in their order.

    A tensor that the index leaves out counts all the same, as transformers has it.

    Raises:
        CheckpointError: if a file is missing or damaged, if two have a tensor of the same name, or if the index names
            a tensor that isn't in the file.
    """
    headers = {file: read_header(file) for file in files_of(path)}
    file_of: dict[str, Path] = {}
    for file, header in headers.items():
        for name in (*(entry.layout.name for entry in header.entries), *header.tied):
            other = file_of.setdefault(name, file)
            if other is not file:
                raise CheckpointError(
                    f"{path} is damaged: tensor {name!r} is in both {other.name} and {file.name}; take one of the "
                    "files away if it belongs to another checkpoint"
                )
    keys = {file.name: {entry.key for entry in header.entries} for file, header in headers.items()}
    lacking = [(key, file) for key, file in _index(path).items() if key not in keys[file]]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" * (len(lacking) > 1)
        raise CheckpointError(
            f"{path} is no complete checkpoint: {INDEX} names tensor {lacking[0][0]!r} in {lacking[0][1]}, "
            f"which has none of that name{more}"
        )
    return headers


def _index(path: Path) -> dict[str, str]:
    """Which file has which key, where there is an index; all those files exist."""
    index = path / INDEX
    if not index.exists():
        return {}
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        file_of = {str(key): str(file) for key, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error
    missing = [file for file in sorted(set(file_of.values())) if "/" in file or not (path / file).is_file()]
    if missing or not file_of:
        raise CheckpointError(f"{path} is no complete checkpoint: it lacks {', '.join(missing) or 'every file'}")
    return file_of


def _only(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(file.name for file in path.glob("*.safetensors"))
    shards = any(re.search(r"-of-\d+\.safetensors$", file) for file in files)
    if not shards and FILE in files:
        return path / FILE
    if len(files) != 1 or shards:
        raise CheckpointError(
            f"{path} is no complete checkpoint: it has {len(files)} safetensors files and no {INDEX}; "
            "a file of them can be loaded by its own path"
        )
    return path / files[0]


def files_with(directory: Path, shards: Sequence[Shard], saved: Partition) -> dict[Path, list[Fragment]]:
    """The files that hold what a rank wants, and what of each."""
    fragments = saved.fragments(shards)
    if saved.count > 1:
        files = {directory / shard_name(rank, saved.count): found for rank, found in fragments.items()}
        for path in (directory / INDEX, *files):
            shard_files.require(path)
        return files
    file_of = {entry.layout.name: path for path, header in headers_of(directory).items() for entry in header.entries}
    files = {}
    for fragment in fragments.get(0, []):
        name = fragment.wanted.whole.name
        if name not in file_of:
            raise CheckpointError(f"{directory} is no complete checkpoint: no file has {name!r}")
        files.setdefault(file_of[name], []).append(fragment)
    return files


def read_header(path: Path) -> Header:
    """Read what a file says of itself.

    Raises:
        CheckpointError: if it is damaged.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        missing = safetensors_header.header_length(head, size_bytes, str(path)) - len(head)
        return safetensors_header.parse(head + file.read(max(0, missing)), size_bytes, str(path))


def shards(layouts: Sequence[TensorLayout], shard_bytes: int) -> Iterator[list[TensorLayout]]:
    """Tensors in files of at most that many bytes, in order, a larger tensor in a file of its own; 0 for one file."""
    group: list[TensorLayout] = []
    group_bytes = 0
    for layout in layouts:
        if group and shard_bytes and group_bytes + layout.size_bytes > shard_bytes:
            yield group
            group, group_bytes = [], 0
        group.append(layout)
        group_bytes += layout.size_bytes
    yield group


def shard_name(number: int, count: int) -> str:
    """The name of a file among several, from 0, as transformers writes it."""
    return FILE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def files_together(partition: Partition) -> dict[str, list[TensorLayout]]:
    """Which file has which tensors where each rank writes one file: pure, so that no rank waits for another."""
    if partition.sharding == "dim0" and partition.count > 1:
        return {_IN_ROWS.format(partition.count): [each for each in partition.layout if each.same_as is None]}
    return {
        shard_name(rank, partition.count): [each.whole for each in partition.owned(rank) if each.whole.same_as is None]
        for rank in range(partition.count)
    }


def index_bytes(files: Mapping[str, Sequence[TensorLayout]]) -> bytes:
    """The index of several files: which of them has which tensor."""
    total = sum(layout.size_bytes for layouts in files.values() for layout in layouts)
    weight_map = {
        safetensors_header.stored_name(layout.name): file for file, layouts in files.items() for layout in layouts
    }
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode()
