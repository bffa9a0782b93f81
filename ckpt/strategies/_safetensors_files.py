"""Which files of a checkpoint hold what, and into which pieces of memory their tensors are read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt import safetensors_format as formats
from ckpt.errors import CheckpointError
from ckpt.safetensors_format import Header
from ckpt.sharding import Division, Part, Piece
from ckpt.strategies import _pieces

if TYPE_CHECKING:
    pass

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
            f"{path} is no complete checkpoint: {formats.INDEX} names tensor {lacking[0][0]!r} in {lacking[0][1]}, "
            f"which has none of that name{more}"
        )
    return headers


def _index(path: Path) -> dict[str, str]:
    """Which file has which key, where there is an index; all those files exist."""
    index = path / formats.INDEX
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
    if not shards and formats.FILE in files:
        return path / formats.FILE
    if len(files) != 1 or shards:
        raise CheckpointError(
            f"{path} is no complete checkpoint: it has {len(files)} safetensors files and no {formats.INDEX}; "
            "a file of them can be loaded by its own path"
        )
    return path / files[0]


def files_with(directory: Path, part: Part, saved: Division) -> dict[Path, list[Piece]]:
    """The files that hold what a rank wants, and what of each."""
    pieces = saved.pieces(part.holds)
    if saved.count > 1:
        files = {directory / formats.shard_name(rank, saved.count): found for rank, found in pieces.items()}
        for path in (directory / formats.INDEX, *files):
            _pieces.require(path)
        return files
    file_of = {entry.layout.name: path for path, header in headers_of(directory).items() for entry in header.entries}
    files = {}
    for piece in pieces.get(0, []):
        name = piece.wanted.whole.name
        if name not in file_of:
            raise CheckpointError(f"{directory} is no complete checkpoint: no file has {name!r}")
        files.setdefault(file_of[name], []).append(piece)
    return files


def read_header(path: Path) -> Header:
    """Read what a file says of itself.

    Raises:
        CheckpointError: if it is damaged.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        missing = formats.header_length(head, size_bytes, str(path)) - len(head)
        return formats.parse(head + file.read(max(0, missing)), size_bytes, str(path))
