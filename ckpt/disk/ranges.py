"""Reads ranges of files into memory that exists, past the page cache or through it.

Ranges are sorted by file and offset, and read in blocks, from several threads; neighbours share a block. A block within
one range goes straight into its memory, where direct I/O may write there: file offset and address must be equal modulo
the sector size. Any other block goes through a buffer, which stays in the processor's cache.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ckpt.disk import page_cache
from ckpt.disk.direct_io import ALIGNMENT, DirectFile, in_blocks, round_up
from ckpt.disk.io_plan import IoPlan
from ckpt.errors import CheckpointError

BLOCK_BYTES = 4 * 2**20
"""With eight in flight, as fast as any size on four filesystems: `tests/benchmarks/README.md` has the sweep."""

_RESIDENT_ENOUGH = 0.5
"""If more than this fraction of a file's pages is in the page cache, reading through it is faster."""

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Bytes of a file, and the memory that they are read into."""

    path: Path
    offset: int
    target: _Bytes
    """Writable, 1-D and contiguous; its length is the number of bytes to read."""

    @property
    def end(self) -> int:
        """The offset of the end of the bytes in the file."""
        return self.offset + len(self.target)


def read(
    ranges: Iterable[Range], plan: IoPlan, threads: int, finished: Callable[[Range], None] = lambda _: None
) -> None:
    """Read ranges of files, in any order; they may overlap in a file, but not in memory.

    Args:
        ranges: what to read.
        plan: how to read what isn't in the page cache.
        threads: requests in flight.
        finished: called with a range as soon as it is read, from one of the threads; its errors end the read.

    Raises:
        CheckpointError: if a file ends too early.
        OSError: if a file can't be read.
    """
    wanted = sorted(ranges, key=lambda item: (item.path, item.offset))
    counts = _Counts(wanted)

    def read_block(block: _Block, buffer: mmap.mmap) -> None:
        with block.file.opened() as file:
            _read_block(file, block, memoryview(buffer))
        for item in block.inside:
            if counts.completes(item, block):
                finished(item)

    with ExitStack() as stack:
        blocks = _blocks([item for item in wanted if len(item.target)], plan, stack)
        in_blocks(blocks, read_block, threads=threads, block_bytes=BLOCK_BYTES)
    for item in wanted:
        if not len(item.target):
            finished(item)


class _File:
    """A file that is open from its first block to its last."""

    def __init__(self, path: Path, plan: IoPlan, blocks: int, stack: ExitStack) -> None:
        self._path, self._plan, self._blocks_left = path, plan, blocks
        self._opened = stack.enter_context(ExitStack())  # closed with the stack, if an error ends the read
        self._file: DirectFile | None = None
        self._lock = threading.Lock()

    @contextmanager
    def opened(self) -> Iterator[DirectFile]:
        """Open the file for one of its blocks, and close it after the last."""
        with self._lock:
            if self._file is None:
                direct = self._plan.direct_reads and page_cache.resident_fraction_of(self._path) <= _RESIDENT_ENOUGH
                self._file = self._opened.enter_context(DirectFile(self._path, os.O_RDONLY, direct=direct))
        yield self._file
        with self._lock:
            self._blocks_left -= 1
            if not self._blocks_left:
                self._opened.close()


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring bytes of a file, at most `BLOCK_BYTES`, and the ranges that have bytes in them."""

    file: _File
    offset: int
    """A multiple of the alignment."""
    inside: tuple[Range, ...]

    def part_of(self, item: Range) -> tuple[int, int]:
        """The offsets in the file where the bytes of a range in this block begin and end."""
        return max(self.offset, item.offset), min(self.offset + BLOCK_BYTES, item.end)


class _Counts:
    """How many bytes of every range aren't read yet."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._left = {item: len(item.target) for item in ranges}
        self._lock = threading.Lock()

    def completes(self, item: Range, block: _Block) -> bool:
        """Count the bytes of a block that was read; returns whether the range is complete now."""
        begin, end = block.part_of(item)
        with self._lock:
            self._left[item] -= end - begin
            return not self._left[item]


def _blocks(ranges: Sequence[Range], plan: IoPlan, stack: ExitStack) -> Iterator[_Block]:
    for path, of_file in groupby(ranges, key=lambda item: item.path):
        parts = list(_parts(list(of_file)))
        file = _File(path, plan, len(parts), stack)
        for offset, inside in parts:
            yield _Block(file, offset, inside)


def _parts(ranges: Sequence[Range]) -> Iterator[tuple[int, tuple[Range, ...]]]:
    """Divide one file's ranges; yields the offsets of the blocks, and the ranges that have bytes in them."""
    waiting = deque(ranges)
    inside: list[Range] = []
    end = 0
    while waiting or inside:
        offset = end if inside else max(end, waiting[0].offset // ALIGNMENT * ALIGNMENT)
        end = offset + BLOCK_BYTES
        while waiting and waiting[0].offset < end:
            inside.append(waiting.popleft())
        yield offset, tuple(inside)
        inside = [item for item in inside if item.end > end]


def _read_block(file: DirectFile, block: _Block, buffer: memoryview) -> None:
    """Read a block into the ranges that have bytes in it."""
    first = block.inside[0]
    begin, end = block.part_of(first)
    if len(block.inside) == 1 and (file.memory_alignment == 1 or (begin == block.offset and end % ALIGNMENT == 0)):
        target = first.target[begin - first.offset : end - first.offset]
        if target.ctypes.data % file.memory_alignment == 0:
            _fill(file, target.data, begin, end - begin)
            return
    size_bytes = max(block.part_of(item)[1] for item in block.inside) - block.offset
    _fill(file, buffer[: round_up(size_bytes)], block.offset, size_bytes)
    staged = np.frombuffer(buffer, np.uint8)
    for item in block.inside:
        begin, end = block.part_of(item)
        item.target[begin - item.offset : end - item.offset] = staged[begin - block.offset : end - block.offset]


def _fill(file: DirectFile, buffer: memoryview, offset: int, size_bytes: int) -> None:
    if file.read(buffer, offset) < size_bytes:
        raise CheckpointError(f"{file.path} ends before byte {offset + size_bytes:,}, or ended while it was being read")
