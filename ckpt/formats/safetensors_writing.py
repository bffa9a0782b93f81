"""Writes a safetensors file block by block, past the page cache or through it, the header last, with checksums."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.disk.direct_io import DirectFile, aligned_buffer, preallocate, round_up
from ckpt.disk.io_plan import IoPlan
from ckpt.formats.pieces import Piece, Pieces
from ckpt.formats.safetensors_header import assign_offsets, header_bytes
from ckpt.formats.safetensors_plan import FileContent
from ckpt.threads import Beside

if TYPE_CHECKING:
    from ckpt.state.layout import State

_BLANK_CHECKSUM = "0" * 16


def write(
    path: Path, content: FileContent, state: State, plan: IoPlan, *, checksum: bool, threads: int, block_bytes: int
) -> dict[str, str]:
    """Write a new file.

    Args:
        path: the file.
        content: its tensors.
        state: their values, by name.
        plan: how to write.
        checksum: store an XXH3-64 per tensor.
        threads: requests in flight, with a buffer of one block per request.
        block_bytes: the size of a request.

    Returns:
        The checksums, by name; none without `checksum`.
    """
    tensors = assign_offsets(content.tensors)
    blank = [replace(info, checksum=_BLANK_CHECKSUM if checksum else "") for info in tensors]
    data_start = len(header_bytes(blank, content.tied))
    data_bytes = sum(info.layout.size_bytes for info in tensors)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with DirectFile(path, flags, direct=plan.direct_writes) as file, Beside() as hashing:
        pieces = [Piece(info.start, state[info.layout.name], info.layout.name) for info in tensors]
        data = Pieces(pieces, hashing if checksum else None)
        if plan.preallocate:
            preallocate(file.descriptor, round_up(data_start + data_bytes))
        in_header_page = min(data_bytes, round_up(data_start) - data_start)
        first = [part.tobytes() for part in data.parts(0, in_header_page)] if in_header_page else []
        starts = range(in_header_page, data_bytes, block_bytes)
        blocks = ((start, min(start + block_bytes, data_bytes)) for start in starts)
        data.write(file, blocks, threads=threads, block_bytes=block_bytes, shift=data_start)
        sums = {str(name): text for name, text in data.checksums().items()} if checksum else {}
        tensors = tuple(replace(info, checksum=sums.get(info.layout.name, "")) for info in tensors)
        head = aligned_buffer(round_up(data_start))
        head.write(header_bytes(tensors, content.tied) + b"".join(first))
        file.write(memoryview(head), 0)
        os.ftruncate(file.descriptor, data_start + data_bytes)
    return sums
