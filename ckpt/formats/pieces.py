"""The bytes of a file as pieces, which are tensors or bytes: cut into blocks, written by several threads, and hashed.

A block is written straight from a tensor's memory where direct I/O allows its address, and always without direct I/O;
else through an aligned buffer.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.disk.direct_io import ALIGNMENT, DirectFile, in_blocks, round_up
from ckpt.state import checksums, dtypes, memory
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Attributes:
        start: where it begins.
        content: a tensor, on any device, or bytes.
        key: what its checksum is stored under; None to compute none.
    """

    start: int
    content: torch.Tensor | bytes | memoryview
    key: Hashable = None

    @property
    def size_bytes(self) -> int:
        """The size of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.size_bytes


class Pieces:
    """Pieces that lie one after another, without gaps; they are hashed while they are being written.

    Args:
        pieces: in any order.
        hashing: computes the checksums; None for no checksums.
    """

    def __init__(self, pieces: Sequence[Piece], hashing: Beside | None) -> None:
        self._pieces = pieces
        self._filled = sorted((piece for piece in pieces if piece.size_bytes), key=lambda piece: piece.start)
        self._starts = [piece.start for piece in self._filled]
        self._hashing = hashing
        self._sources = {
            piece.start: _Source(piece, uses=1 if hashing is None or piece.key is None else 2) for piece in self._filled
        }
        self._sums: dict[Hashable, Future[str]] = {}

    def parts(self, begin: int, end: int) -> list[np.ndarray[Any, Any]]:
        """Return the bytes between two offsets, a part per piece; no byte may be requested twice."""
        inside = self._filled[bisect_right(self._starts, begin) - 1 : bisect_left(self._starts, end)]
        for piece in inside:
            if self._hashing is not None and piece.key is not None and piece.start >= begin:  # its first bytes
                self._sums[piece.key] = self._hashing.submit(self._sources[piece.start].checksum)
        return [
            self._sources[piece.start].part(max(begin, piece.start) - piece.start, min(end, piece.end) - piece.start)
            for piece in inside
        ]

    def write(
        self, file: DirectFile, blocks: Iterable[tuple[int, int]], *, threads: int, block_bytes: int, shift: int = 0
    ) -> None:
        """Write blocks, given by the offsets of their begin and end, from several threads.

        Args:
            file: the file.
            blocks: begin at aligned offsets of the file; what doesn't end at one is padded with zeros.
            threads: requests in flight, with a buffer per request.
            block_bytes: the most that a block has.
            shift: where the offset 0 of the pieces is in the file.
        """

        def write_block(block: tuple[int, int], buffer: mmap.mmap) -> None:
            file.write(_aligned(self.parts(*block), buffer, file), shift + block[0])

        in_blocks(blocks, write_block, threads=threads, block_bytes=block_bytes)

    def checksums(self) -> dict[Hashable, str]:
        """Return the checksums of all pieces that have a key, by key, once all bytes were requested."""
        empty = checksums.of_bytes(b"")
        keys = [piece.key for piece in self._pieces if piece.key is not None]
        return {key: self._sums[key].result() if key in self._sums else empty for key in keys}


class _Source:
    """A piece's bytes: the memory of a contiguous tensor on the CPU, or a copy for as long as that is in use."""

    def __init__(self, piece: Piece, *, uses: int) -> None:
        self._content = piece.content
        self._size_bytes = piece.size_bytes
        self._array: np.ndarray[Any, Any] | None = None
        self._bytes_left = uses * piece.size_bytes
        self._lock = threading.Lock()

    def part(self, start: int, end: int) -> np.ndarray[Any, Any]:
        with self._lock:
            array = self._bytes() if self._array is None else self._array
            self._bytes_left -= end - start
            self._array = array if self._bytes_left else None
        return array[start:end]

    def checksum(self) -> str:
        return checksums.of_bytes(self.part(0, self._size_bytes))

    def _bytes(self) -> np.ndarray[Any, Any]:
        if isinstance(self._content, bytes | memoryview):
            return np.frombuffer(self._content, np.uint8)
        return dtypes.to_bytes(self._content)


def _aligned(parts: Sequence[np.ndarray[Any, Any]], buffer: mmap.mmap, file: DirectFile) -> memoryview:
    """Return the bytes of a block as direct I/O needs them: in place if possible, else copied to the buffer and padded.

    A device that takes only whole sectors gets them from the buffer, which has huge pages: from a tensor's pages, which
    are small, writes took 1.3 times as long.
    """
    in_place = file.memory_alignment <= memory.ALIGNMENT and parts[0].ctypes.data % file.memory_alignment == 0
    if len(parts) == 1 and in_place and len(parts[0]) % ALIGNMENT == 0:
        return parts[0].data
    staged = np.frombuffer(buffer, np.uint8)
    filled = 0
    for part in parts:
        staged[filled : filled + len(part)] = part
        filled += len(part)
    staged[filled : round_up(filled)] = 0
    return memoryview(buffer)[: round_up(filled)]
