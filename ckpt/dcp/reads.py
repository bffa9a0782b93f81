"""Reads parts of files in batches, so that the buffers of those that can't be read in place stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ckpt.disk import ranges
from ckpt.disk.io_plan import IoPlan
from ckpt.state import dtypes

_BUFFER_BYTES = 256 * 2**20
"""The most that the buffers of a batch have, unless a single part is larger."""


@dataclass(frozen=True, slots=True)
class Read:
    """A part of a file that is to be read.

    Attributes:
        path: the file.
        offset: where the part begins.
        size_bytes: its size.
        use: takes what was read: the target, or a new tensor of uint8; called from one of several threads.
        target: a contiguous tensor of that size on the CPU that is read into; None for a buffer.
    """

    path: Path
    offset: int
    size_bytes: int
    use: Callable[[torch.Tensor], None]
    target: torch.Tensor | None = None


def run(reads: Iterable[Read], plan: IoPlan, threads: int) -> None:
    """Read all parts, in the order of the files.

    Raises:
        CheckpointError: if a file ends too early.
        OSError: if a file can't be read.
    """
    for batch in _batches(sorted(reads, key=lambda read: (read.path, read.offset))):
        read_of: dict[ranges.Range, tuple[Read, torch.Tensor]] = {}
        for read in batch:
            tensor = torch.empty(read.size_bytes, dtype=torch.uint8) if read.target is None else read.target
            read_of[ranges.Range(read.path, read.offset, dtypes.to_bytes(tensor))] = read, tensor

        def finished(done: ranges.Range, read_of: dict[ranges.Range, tuple[Read, torch.Tensor]] = read_of) -> None:
            read, tensor = read_of[done]
            read.use(tensor)

        ranges.read(read_of, plan, threads, finished)


def _batches(reads: Iterable[Read]) -> Iterator[list[Read]]:
    batch: list[Read] = []
    buffered_bytes = 0
    for read in reads:
        needed_bytes = read.size_bytes if read.target is None else 0
        if batch and buffered_bytes + needed_bytes > _BUFFER_BYTES:
            yield batch
            batch, buffered_bytes = [], 0
        batch.append(read)
        buffered_bytes += needed_bytes
    if batch:
        yield batch
