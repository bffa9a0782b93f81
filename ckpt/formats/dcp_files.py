"""Lays out and writes a `.distcp` file of torch.distributed.checkpoint: `torch.save` archives one after another.

large tensors    their bytes begin where they do in a page of memory: direct I/O moves them without a copy
small ones       packed, then plain values and what `torch.save` must pickle itself
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from ckpt.disk.direct_io import ALIGNMENT, DATA_OFFSET, DirectFile, preallocate, round_up
from ckpt.disk.io_plan import IoPlan
from ckpt.formats import torch_archives
from ckpt.formats.pieces import Piece, Pieces
from ckpt.threads import Beside

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import WriteItem

_SMALL_BYTES = 64 * 1024
"""Below this, gaps of up to a page between tensors would be a waste of space."""

_ARCHIVE_ALIGNMENT = 64
"""As PyTorch aligns the bytes of a tensor in its archive."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to write.

    Attributes:
        plan: past the page cache or through it.
        threads: requests in flight per file, with a buffer per request.
        block_bytes: the size of a request.
        checksum: store an XXH3-64 of every item.
        sync: bring the file to stable storage.
    """

    plan: IoPlan
    threads: int
    block_bytes: int
    checksum: bool
    sync: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """An item in a file: where its archive is, and where in that a tensor's bytes begin; None if that is unknown."""

    item: WriteItem
    offset: int
    length: int
    data_start: int | None


def write(path: Path, items: Sequence[tuple[WriteItem, Any]], settings: Settings) -> list[WriteResult]:
    """Write a new file.

    Args:
        path: the file.
        items: of the plan, with their tensors or `io.BytesIO`.
        settings: how to write.

    Returns:
        A result per item. Its storage data have what PyTorch stores, and two more attributes: `data_start`, relative to
        the item's offset, and `xxh3`, the checksum of the tensor's bytes or of the whole item, both None if unknown.
    """
    pieces, entries, size_bytes = _lay_out(items)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with DirectFile(path, flags, direct=settings.plan.direct_writes) as file, Beside() as hashing:
        if settings.plan.preallocate:
            preallocate(file.descriptor, round_up(size_bytes))
        data = Pieces(pieces, hashing if settings.checksum else None)
        blocks = _blocks(pieces, size_bytes, settings.block_bytes)
        data.write(file, blocks, threads=settings.threads, block_bytes=settings.block_bytes)
        os.ftruncate(file.descriptor, size_bytes)
        if settings.sync:
            os.fsync(file.descriptor)
        sums = data.checksums() if settings.checksum else {}
    return [_result(entry, path.name, sums.get(entry.item.index)) for entry in entries]


def _result(entry: _Entry, file: str, checksum: str | None) -> WriteResult:
    info = _StorageInfo(file, entry.offset, entry.length)
    # In the same object, since it is all that reaches the coordinator and `.metadata`; PyTorch ignores both.
    vars(info).update(data_start=entry.data_start, xxh3=checksum)
    return WriteResult(entry.item.index, entry.length, info)


def _lay_out(items: Sequence[tuple[WriteItem, Any]]) -> tuple[list[Piece], list[_Entry], int]:
    """Return the pieces of a file without gaps, where its items are, and its size."""
    pieces: list[Piece] = []
    entries = []
    end = 0

    def add(content: Any, key: Any = None) -> None:
        nonlocal end
        pieces.append(Piece(end, content, key))
        end = pieces[-1].end

    for item, value in sorted(items, key=lambda pair: not _is_large(pair[1])):
        archive = _archive_around(value)
        add(bytes(-end % _ARCHIVE_ALIGNMENT))
        if archive and _is_large(value):
            add(bytes((DATA_OFFSET - end - len(archive.head)) % ALIGNMENT))
        start, data_start = end, None
        if archive:
            add(archive.head)
            data_start = end - start
            add(value, item.index)
            add(archive.tail)
        else:
            add(value.getbuffer() if isinstance(value, io.BytesIO) else torch_archives.saved(value), item.index)
        entries.append(_Entry(item, start, end - start, data_start))
    return pieces, entries, end


def _archive_around(value: Any) -> torch_archives.Archive | None:
    if not _is_plain(value):
        return None
    return torch_archives.around(tuple(value.shape), value.dtype, _ARCHIVE_ALIGNMENT)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a tensor whose bytes are all that there is to it."""
    return (
        type(value) in {torch.Tensor, torch.nn.Parameter}
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type != "meta"
    )


def _is_large(value: Any) -> bool:
    return _is_plain(value) and value.nbytes >= _SMALL_BYTES


def _blocks(pieces: Sequence[Piece], size_bytes: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a file into blocks that begin at page boundaries; a large tensor's whole pages are in blocks of their own."""
    cuts = [0]
    for piece in pieces:
        if _is_large(piece.content):
            cuts += [round_up(piece.start), piece.end // ALIGNMENT * ALIGNMENT]
    for begin, end in zip(cuts, [*cuts[1:], size_bytes], strict=True):
        for start in range(begin, end, block_bytes):
            yield start, min(start + block_bytes, end)
