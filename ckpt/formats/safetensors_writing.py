"""Writes a safetensors file block by block, past the page cache or through it, the header last, with checksums.

A block is written straight from a tensor's memory where direct I/O allows its address, and always without direct I/O;
else through an aligned buffer.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.disk.direct_io import ALIGNMENT, DirectFile, aligned_buffer, in_blocks, preallocate, round_up
from ckpt.disk.io_plan import IoPlan
from ckpt.formats.safetensors_header import assign_offsets, header_bytes
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.formats.safetensors_plan import FileContent
from ckpt.state import checksums, dtypes, memory
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch

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
        data = _Data(tensors, state, hashing if checksum else None)

        def write_block(offset: int, buffer: mmap.mmap) -> None:
            parts = data.parts(offset, min(offset + block_bytes, data_bytes))
            file.write(_aligned(parts, buffer, file), data_start + offset)

        if plan.preallocate:
            preallocate(file.descriptor, round_up(data_start + data_bytes))
        in_header_page = min(data_bytes, round_up(data_start) - data_start)
        first = [part.tobytes() for part in data.parts(0, in_header_page)] if in_header_page else []
        in_blocks(range(in_header_page, data_bytes, block_bytes), write_block, threads=threads, block_bytes=block_bytes)
        sums = data.checksums() if checksum else {}
        tensors = tuple(replace(info, checksum=sums.get(info.layout.name, "")) for info in tensors)
        head = aligned_buffer(round_up(data_start))
        head.write(header_bytes(tensors, content.tied) + b"".join(first))
        file.write(memoryview(head), 0)
        os.ftruncate(file.descriptor, data_start + data_bytes)
    return sums


class _Data:
    """The data of a file, taken from its tensors, which are hashed while they are being written."""

    def __init__(self, tensors: Sequence[TensorInfo], state: State, hashing: Beside | None) -> None:
        self._tensors = tensors
        self._filled = sorted((info for info in tensors if info.layout.size_bytes), key=lambda info: info.start)
        self._starts = [info.start for info in self._filled]
        uses = 1 if hashing is None else 2
        self._sources = {info.start: _Source(state[info.layout.name], uses=uses) for info in self._filled}
        self._hashing = hashing
        self._sums: dict[str, Future[str]] = {}

    def parts(self, begin: int, end: int) -> list[np.ndarray[Any, Any]]:
        """Return the bytes between two offsets, a part per tensor; no byte may be requested twice."""
        inside = self._filled[bisect_right(self._starts, begin) - 1 : bisect_left(self._starts, end)]
        for info in inside:
            if self._hashing is not None and info.start >= begin:  # its first bytes
                self._sums[info.layout.name] = self._hashing.submit(self._sources[info.start].checksum)
        return [
            self._sources[info.start].part(max(begin, info.start) - info.start, min(end, info.end) - info.start)
            for info in inside
        ]

    def checksums(self) -> dict[str, str]:
        """Return the checksums of all tensors, once all their bytes were requested."""
        empty = checksums.of_bytes(b"")
        names = [info.layout.name for info in self._tensors]
        return {name: self._sums[name].result() if name in self._sums else empty for name in names}


class _Source:
    """A tensor's bytes: its own memory if it is contiguous on the CPU, else a copy for as long as that is in use."""

    def __init__(self, tensor: torch.Tensor, *, uses: int) -> None:
        self._tensor = tensor
        self._array: np.ndarray[Any, Any] | None = None
        self._bytes_left = uses * tensor.numel() * tensor.element_size()
        self._lock = threading.Lock()

    def part(self, start: int, end: int) -> np.ndarray[Any, Any]:
        with self._lock:
            array = dtypes.to_bytes(self._tensor) if self._array is None else self._array
            self._bytes_left -= end - start
            self._array = array if self._bytes_left else None
        return array[start:end]

    def checksum(self) -> str:
        return checksums.of_bytes(self.part(0, self._tensor.numel() * self._tensor.element_size()))


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
