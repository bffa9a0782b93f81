"""Reads tensors of a safetensors file block by block into memory of their own, past the page cache or through it.

A block within one tensor goes straight into its memory, where direct I/O may write there: file offset and address must
be equal modulo the sector size. Any other block goes through a buffer, which stays in the processor's cache.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt.disk import page_cache
from ckpt.disk.direct_io import ALIGNMENT, DirectFile, in_blocks, round_up
from ckpt.disk.io_plan import IoPlan
from ckpt.errors import CheckpointError
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.state import dtypes, memory
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_RESIDENT_ENOUGH = 0.5
"""If more than this fraction of a file's pages is in the page cache, reading through it is faster."""

_READ_BYTES = 2**20
"""Into memory that was never used, small requests were faster than large ones: the results page has the sweep."""

Check = Callable[[TensorInfo, "torch.Tensor"], None]


class _Target:
    """A tensor that is being read, and where its bytes are in the file."""

    def __init__(self, info: TensorInfo, data_start: int) -> None:
        self.info = info
        self.tensor = memory.empty(info.layout)
        self.bytes = dtypes.to_bytes(self.tensor)
        self.start, self.end = data_start + info.start, data_start + info.end
        self._bytes_left = info.layout.size_bytes
        self._lock = threading.Lock()

    def count(self, size_bytes: int) -> bool:
        """Count bytes that were read; returns whether the tensor is complete now."""
        with self._lock:
            self._bytes_left -= size_bytes
            return not self._bytes_left


class _Checks:
    """Checks of complete tensors, in a thread of their own while others are being read."""

    def __init__(self, check: Check | None, thread: Beside) -> None:
        self._check, self._thread = check, thread
        self._outcomes: list[Future[None]] = []
        self.failed = False

    def begin(self, target: _Target) -> None:
        """Check a tensor, if there is a check."""
        if self._check:
            self._outcomes.append(self._thread.submit(self._run, self._check, target))

    def _run(self, check: Check, target: _Target) -> None:
        try:
            check(target.info, target.tensor)
        except BaseException:
            self.failed = True
            raise

    def finish(self) -> None:
        """Wait for all checks, and raise the first error."""
        for outcome in self._outcomes:
            outcome.result()


def read(
    path: Path, tensors: Sequence[TensorInfo], data_start: int, plan: IoPlan, threads: int, check: Check | None = None
) -> State:
    """Read some of a file's tensors.

    Args:
        path: the file.
        tensors: the wanted tensors, in any order.
        data_start: where the file's data begins.
        plan: how to read what isn't in the page cache.
        threads: requests in flight.
        check: called with a tensor as soon as it is complete, from a thread of its own; its errors end the read.

    Raises:
        CheckpointError: if the file ends too early.
    """
    targets = [_Target(info, data_start) for info in tensors]
    filled = sorted((target for target in targets if target.info.layout.size_bytes), key=lambda target: target.start)
    starts = [target.start for target in filled]
    ends = [target.end for target in filled]
    direct = plan.direct_reads and not page_cache.resident_fraction_of(path) > _RESIDENT_ENOUGH
    with DirectFile(path, os.O_RDONLY, direct=direct) as file, Beside() as prefaulting, Beside() as checking:
        prefaulting.submit(memory.prefault, [target.tensor for target in filled])
        checks = _Checks(check, checking)

        def read_block(offset: int, buffer: mmap.mmap) -> None:
            if checks.failed:  # the error is raised below
                return
            end = offset + _READ_BYTES
            inside = filled[bisect_right(ends, offset) : bisect_left(starts, end)]
            _read_block(file, offset, inside, memoryview(buffer))
            for target in inside:
                if target.count(min(end, target.end) - max(offset, target.start)):
                    checks.begin(target)

        in_blocks(_blocks(filled), read_block, threads=threads, block_bytes=_READ_BYTES)
        for target in targets:
            if not target.info.layout.size_bytes:
                checks.begin(target)
        checks.finish()
    return {target.info.layout.name: target.tensor for target in targets}


def _blocks(targets: Sequence[_Target]) -> Iterator[int]:
    """Return the offsets, multiples of the alignment, of the blocks that have the tensors' bytes."""
    end = 0
    for target in targets:
        offset = max(end, target.start // ALIGNMENT * ALIGNMENT)
        while offset < target.end:
            yield offset
            offset += _READ_BYTES
            end = offset


def _read_block(file: DirectFile, offset: int, inside: Sequence[_Target], buffer: memoryview) -> None:
    """Read a block into the tensors that have bytes in it."""
    first = inside[0]
    size_bytes = min(offset + _READ_BYTES, inside[-1].end) - offset
    if len(inside) == 1 and first.start <= offset and size_bytes % ALIGNMENT == 0:
        destination = first.bytes[offset - first.start : offset - first.start + size_bytes]
        if destination.ctypes.data % file.memory_alignment == 0:
            _fill(file, destination.data, offset, size_bytes)
            return
    _fill(file, buffer[: min(_READ_BYTES, round_up(size_bytes))], offset, size_bytes)
    staged = np.frombuffer(buffer, np.uint8)
    for target in inside:
        begin, end = max(offset, target.start), min(offset + _READ_BYTES, target.end)
        target.bytes[begin - target.start : end - target.start] = staged[begin - offset : end - offset]


def _fill(file: DirectFile, buffer: memoryview, offset: int, size_bytes: int) -> None:
    if file.read(buffer, offset) < size_bytes:
        raise CheckpointError(f"{file.path} ended while it was being read")
