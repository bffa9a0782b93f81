"""What a filesystem and the memory do by themselves: a file written and read in order, and bytes copied in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from ckpt.disk.direct_io import ALIGNMENT, DirectFile, in_blocks, preallocate, round_up
from ckpt.threads import over

BLOCK_BYTES = 8 * 2**20
_COPY_BYTES = 64 * 2**20

THREADS = 4
"""On one disk two threads with 8 MiB each reached its limit; arrays of disks take more."""


def write_sequentially(
    path: Path,
    size_bytes: int,
    *,
    direct: bool = True,
    reserve: bool = True,
    content: bytes = b"",
    first: int = 0,
    threads: int = THREADS,
) -> bool:
    """Write a new file in which no two pages are equal, and sync it.

    Args:
        path: the file.
        size_bytes: its size, which is rounded up to the alignment.
        direct: write past the page cache if the filesystem allows that; else through it.
        reserve: preallocate the file's blocks.
        content: what every block holds, but for a number per page; random bytes if it is empty. On filesystems that
            compress it decides the rate.
        first: the number of the first page, so that files of one measurement have no page in common, either.
        threads: requests in flight.

    Returns:
        Whether the data went past the page cache.
    """
    size_bytes = round_up(size_bytes)
    with DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, direct=direct) as file:

        def write(offset: int, buffer: mmap.mmap) -> None:
            _stamp(buffer, first + offset)
            file.write(memoryview(buffer)[: size_bytes - offset], offset)

        if reserve:
            preallocate(file.descriptor, size_bytes)
        blocks = range(0, size_bytes, BLOCK_BYTES)
        content = content or os.urandom(BLOCK_BYTES)
        in_blocks(blocks, write, threads=threads, block_bytes=BLOCK_BYTES, content=content)
        os.fsync(file.descriptor)
        return file.direct


def read_sequentially(path: Path, *, direct: bool = True, threads: int = THREADS) -> bool:
    """Read a whole file into memory block by block, past the page cache or through it, and discard it.

    Args:
        path: the file.
        direct: read past the page cache if the filesystem allows that; else through it.
        threads: requests in flight.

    Returns:
        Whether the data went past the page cache.

    Raises:
        OSError: if the file is shorter than its size.
    """
    with DirectFile(path, os.O_RDONLY, direct=direct) as file:
        size_bytes = os.fstat(file.descriptor).st_size

        def read(offset: int, buffer: mmap.mmap) -> None:
            wanted = min(BLOCK_BYTES, size_bytes - offset)
            if file.read(memoryview(buffer), offset) < wanted:
                raise OSError(f"{path} ends before its size of {size_bytes} bytes")

        in_blocks(range(0, size_bytes, BLOCK_BYTES), read, threads=threads, block_bytes=BLOCK_BYTES)
        return file.direct


def copy_memory(size_bytes: int) -> bool:
    """Copy that many bytes from memory to memory, on all cores, between buffers that no cache holds."""
    workers = len(os.sched_getaffinity(0))
    share = size_bytes // workers + 1

    def copy(_: int) -> None:
        source, destination = _copy_buffers()
        done = 0
        while done < share:
            part = min(_COPY_BYTES, share - done)
            np.copyto(destination[:part], source[:part])
            done += part

    over(range(workers), copy, workers)
    return False


def _copy_buffers() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)


def _stamp(buffer: mmap.mmap, number: int) -> None:
    """Make every page of a block unique, so that no filesystem deduplicates it."""
    for page in range(0, len(buffer), ALIGNMENT):
        buffer[page : page + 8] = (number + page).to_bytes(8, "little")
