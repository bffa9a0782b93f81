"""Tensors of a safetensors file, read block by block into memory of their own, past the page cache or through it.

A block that lies within one tensor goes straight into its memory, where direct I/O may write there: file offset and
address must have the same place within a sector. Any other goes through a buffer, which stays in the processor's cache.
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
from ckpt.errors import CheckpointError
from ckpt.formats.safetensors_header import Entry
from ckpt.state import dtypes, memory
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_RESIDENT_ENOUGH = 0.5
"""From this share of a file's pages in the page cache on, reading through it is the faster way."""

_READ_BYTES = 2**20
"""Into memory that was never used, small requests were faster than large ones: the results page has the sweep."""

Check = Callable[[Entry, "torch.Tensor"], None]


class _Target:
    """A tensor that is being read, and where in the file its bytes lie."""

    def __init__(self, entry: Entry, data_start: int) -> None:
        self.entry = entry
        self.tensor = memory.empty(entry.layout)
        self.bytes = dtypes.to_bytes(self.tensor)
        self.start, self.end = data_start + entry.start, data_start + entry.end
        self._bytes_left = entry.layout.size_bytes
        self._lock = threading.Lock()

    def arrived(self, size_bytes: int) -> bool:
        """Note that so many bytes are there; whether they were the last."""
        with self._lock:
            self._bytes_left -= size_bytes
            return not self._bytes_left


class _Checks:
    """Checks of tensors that have arrived, in a thread beside those that read."""

    def __init__(self, check: Check | None, beside: Beside) -> None:
        self._check, self._beside = check, beside
        self._outcomes: list[Future[None]] = []
        self.failed = False

    def begin(self, target: _Target) -> None:
        """Check a tensor, if there is something to check."""
        if self._check:
            self._outcomes.append(self._beside.submit(self._run, self._check, target))

    def _run(self, check: Check, target: _Target) -> None:
        try:
            check(target.entry, target.tensor)
        except BaseException:
            self.failed = True
            raise

    def finish(self) -> None:
        """Wait for all, and raise the first error."""
        for outcome in self._outcomes:
            outcome.result()


def read(path: Path, entries: Sequence[Entry], data_start: int, threads: int, check: Check | None = None) -> State:
    """Read some of a file's tensors.

    Args:
        path: the file.
        entries: the tensors, in any order.
        data_start: where the file's data begins.
        threads: requests in flight.
        check: called with each tensor as soon as all of it is there, from a thread beside those that read; what it
            raises ends the load.

    Raises:
        CheckpointError: if the file ends too early.
    """
    targets = [_Target(entry, data_start) for entry in entries]
    filled = sorted((target for target in targets if target.entry.layout.size_bytes), key=lambda target: target.start)
    starts = [target.start for target in filled]
    ends = [target.end for target in filled]
    cached = page_cache.resident_fraction_of(path) > _RESIDENT_ENOUGH
    with DirectFile(path, os.O_RDONLY, direct=not cached) as file, Beside() as prefaulting, Beside() as checking:
        prefaulting.submit(memory.prefault, [target.tensor for target in filled])
        checks = _Checks(check, checking)

        def read_block(offset: int, buffer: mmap.mmap) -> None:
            if checks.failed:  # the error is raised below
                return
            end = offset + _READ_BYTES
            inside = filled[bisect_right(ends, offset) : bisect_left(starts, end)]
            _read_block(file, offset, inside, memoryview(buffer))
            for target in inside:
                if target.arrived(min(end, target.end) - max(offset, target.start)):
                    checks.begin(target)

        in_blocks(_blocks(filled), read_block, threads=threads, block_bytes=_READ_BYTES)
        for target in targets:
            if not target.entry.layout.size_bytes:
                checks.begin(target)
        checks.finish()
    return {target.entry.layout.name: target.tensor for target in targets}


def _blocks(targets: Sequence[_Target]) -> Iterator[int]:
    """Where the blocks begin, in pages of the file, that have the tensors' bytes."""
    end = 0
    for target in targets:
        offset = max(end, target.start // ALIGNMENT * ALIGNMENT)
        while offset < target.end:
            yield offset
            offset += _READ_BYTES
            end = offset


def _read_block(file: DirectFile, offset: int, inside: Sequence[_Target], buffer: memoryview) -> None:
    last = inside[-1]
    wanted = min(offset + _READ_BYTES, last.end) - offset
    first = inside[0]
    if len(inside) == 1 and first.start <= offset and wanted % ALIGNMENT == 0:
        place = first.bytes[offset - first.start : offset - first.start + wanted]
        if place.ctypes.data % file.memory_alignment == 0:
            if file.read(place.data, offset) < wanted:
                raise CheckpointError(f"{file.path} ended while it was being read")
            return
    if file.read(buffer[: min(_READ_BYTES, round_up(wanted))], offset) < wanted:
        raise CheckpointError(f"{file.path} ended while it was being read")
    staged = np.frombuffer(buffer, np.uint8)
    for target in inside:
        begin, end = max(offset, target.start), min(offset + _READ_BYTES, target.end)
        target.bytes[begin - target.start : end - target.start] = staged[begin - offset : end - offset]
