"""Direct I/O at the disk's speed from Python: aligned buffers, a few threads, requests of several MiB.

`os.pwrite` and `os.preadv` release the interpreter's lock while the kernel works, so a few threads keep a disk busy.
Where a filesystem refuses `O_DIRECT`, files are opened through the page cache, and the caller is told.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ALIGNMENT = 4096
"""Of addresses, offsets and sizes. Most devices want 512; a page satisfies older network filesystems too."""

BLOCK_BYTES = 8 * 2**20
_COPY_BYTES = 64 * 2**20

THREADS = 4
"""On one disk two threads with 8 MiB each reached its limit; arrays of disks take more."""


def round_up(size_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def aligned_buffer(size_bytes: int) -> mmap.mmap:
    """Zeroed memory at a page boundary, in huge pages where the kernel has them."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def open_direct(path: Path, flags: int) -> tuple[int, bool]:
    """Open a file past the page cache; where that is refused, through it. Returns whether it is direct."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666), True
    except OSError:
        return os.open(path, flags, 0o666), False


def preallocate(descriptor: int, size_bytes: int) -> None:
    """Reserve a file's blocks, so that writing does not search for them; where that is not supported, do nothing.

    Not `os.posix_fallocate`: where the filesystem can't, the C library writes the whole file instead.
    """
    _libc.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(size_bytes))


def write_sequentially(path: Path, size_bytes: int, *, seed: int = 0) -> bool:
    """Write a new file of that size (rounded up to the alignment), no two pages alike, and sync it.

    Returns:
        Whether it was written with direct I/O.
    """
    size_bytes = round_up(size_bytes)
    descriptor, direct = open_direct(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    noise = os.urandom(BLOCK_BYTES)

    def write(buffer: mmap.mmap, offset: int, length: int) -> None:
        _stamp(buffer, seed + offset)
        done = 0
        while done < length:
            done += os.pwrite(descriptor, memoryview(buffer)[done:length], offset + done)

    def fresh() -> mmap.mmap:
        buffer = aligned_buffer(BLOCK_BYTES)
        buffer[:] = noise
        return buffer

    try:
        preallocate(descriptor, size_bytes)
        _in_blocks(size_bytes, fresh, write)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return direct


def read_sequentially(path: Path) -> bool:
    """Read a whole file into memory, block by block, and forget it.

    Returns:
        Whether it was read with direct I/O.
    """
    descriptor, direct = open_direct(path, os.O_RDONLY)

    def read(buffer: mmap.mmap, offset: int, length: int) -> None:
        done = 0
        while done < length:
            got = os.preadv(descriptor, [memoryview(buffer)[done:length]], offset + done)
            if not got:
                raise OSError(f"{path} ends at {offset + done} bytes, before its size of {size_bytes}")
            done += got

    try:
        size_bytes = os.fstat(descriptor).st_size
        _in_blocks(size_bytes, lambda: aligned_buffer(BLOCK_BYTES), read)
    finally:
        os.close(descriptor)
    return direct


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

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(copy, range(workers)):
            pass
    return False


def _copy_buffers() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)


def _in_blocks(size_bytes: int, fresh: Callable[[], mmap.mmap], work: Callable[[mmap.mmap, int, int], None]) -> None:
    """Call `work(buffer, offset, length)` for each block of a file, from a few threads, each with its own buffer."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    numbers = itertools.count()
    lock = threading.Lock()

    def worker(_: int) -> None:
        buffer = fresh()
        while True:
            with lock:
                number = next(numbers)
            if number >= blocks:
                return
            offset = number * BLOCK_BYTES
            work(buffer, offset, min(BLOCK_BYTES, size_bytes - offset))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(worker, range(THREADS)):
            pass


def _stamp(buffer: mmap.mmap, number: int) -> None:
    """Make every page of a block unlike any other, so that no filesystem may store it once for many."""
    for page in range(0, len(buffer), ALIGNMENT):
        buffer[page : page + 8] = (number + page).to_bytes(8, "little")


_libc = ctypes.CDLL(None, use_errno=True)
