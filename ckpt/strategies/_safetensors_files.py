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


def files_of(directory: Path) -> list[Path]:
    """The files of a checkpoint, in order: those that its index names, or the only one.

    Raises:
        CheckpointError: if one is missing.
    """
    index = directory / formats.INDEX
    if index.exists():
        try:
            files = sorted({str(file) for file in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error
    else:
        files = sorted(path.name for path in directory.glob("*.safetensors"))
        if len(files) != 1 or re.search(r"-of-\d+\.safetensors$", files[0]):
            raise CheckpointError(
                f"{directory} is no complete checkpoint: it has {len(files)} safetensors files and no {formats.INDEX}"
            )
    missing = [file for file in files if "/" in file or not (directory / file).is_file()]
    if missing or not files:
        raise CheckpointError(f"{directory} is no complete checkpoint: it lacks {', '.join(missing) or 'every file'}")
    return [directory / file for file in files]


def files_with(directory: Path, part: Part, saved: Division) -> dict[Path, list[Piece]]:
    """The files that hold what a rank wants, and what of each."""
    pieces = saved.pieces(part.holds)
    if saved.count > 1:
        files = {directory / formats.shard_name(rank, saved.count): found for rank, found in pieces.items()}
        for path in (directory / formats.INDEX, *files):
            _pieces.require(path)
        return files
    file_of = {entry.layout.name: path for path in files_of(directory) for entry in read_header(path).entries}
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
