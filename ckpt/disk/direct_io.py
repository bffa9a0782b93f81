"""Direct I/O at the disk's speed from Python: aligned buffers, a few threads, requests of several MiB.

`os.pwrite` and `os.preadv` release the interpreter's lock while the kernel works, so a few threads keep a disk busy.
Where a filesystem refuses `O_DIRECT`, a file goes through the page cache, and `DirectFile.direct` is False.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from ckpt.threads import over, run

T = TypeVar("T")

ALIGNMENT = 4096
"""The alignment of addresses, offsets and sizes. Most devices need 512; older network filesystems need a page."""

BLOCK_BYTES = 8 * 2**20
_COPY_BYTES = 64 * 2**20
_PREFAULT_BYTES = 4 * 2**20

THREADS = 4
"""On one disk two threads with 8 MiB each reached its limit; arrays of disks take more."""


def round_up(size_bytes: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def aligned_buffer(size_bytes: int) -> mmap.mmap:
    """Allocate zeroed memory at a page boundary, in huge pages if the kernel has them."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def prefault(memory: mmap.mmap) -> None:
    """Let the kernel allocate and clear the pages of new memory, so that a read into it needn't wait for that.

    Call it from a thread of its own. Before Linux 5.14 it does nothing.
    """
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    for offset in range(0, len(memory), _PREFAULT_BYTES):
        length = min(_PREFAULT_BYTES, len(memory) - offset)
        if _libc.madvise(ctypes.c_void_p(address + offset), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
            break


class DirectFile:
    """A file that is read and written past the page cache; or through it, if the filesystem refuses that at any time.

    Offsets and lengths must be aligned to `ALIGNMENT`, addresses to `memory_alignment`. Only a read at the file's end
    may return less.
    """

    def __init__(self, path: Path, flags: int, *, direct: bool = True) -> None:
        self.path = path
        self.direct = direct
        try:
            self.descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o666)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self.direct = False
            self.descriptor = os.open(path, flags & ~os.O_EXCL, 0o666)  # the refused open may have made the file
        self.memory_alignment = _memory_alignment(self.descriptor) if self.direct else 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of the data at that offset."""
        done = 0
        while done < len(data):
            part, at = data[done:], offset + done
            done += self._or_through_the_cache(lambda: os.pwrite(self.descriptor, part, at))  # noqa: B023  # called at once

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from that offset; returns the number of bytes that the file had."""
        done = 0
        while done < len(buffer):
            part, at = buffer[done:], offset + done
            got = self._or_through_the_cache(lambda: os.preadv(self.descriptor, [part], at))  # noqa: B023  # called at once
            if not got:
                break
            done += got
            if done % ALIGNMENT:  # the end of the file: a direct read from here would be refused
                break
        return done

    def _or_through_the_cache(self, work: Callable[[], int]) -> int:
        """Call, and again without `O_DIRECT`: some filesystems accept it for `open`, and refuse the first request."""
        try:
            return work()
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        self.direct = False
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return work()


def preallocate(descriptor: int, size_bytes: int) -> None:
    """Reserve a file's blocks, so that writes don't search for them; does nothing if that isn't supported.

    `os.posix_fallocate` would write the whole file then.
    """
    _libc.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(size_bytes))


def in_blocks(
    blocks: Iterable[T],
    work: Callable[[T, mmap.mmap], None],
    *,
    threads: int = THREADS,
    block_bytes: int = BLOCK_BYTES,
    content: bytes = b"",
) -> None:
    """Call `work(block, buffer)` for each block, in order, from a few threads, each with an aligned buffer of its own.

    The buffers hold `content` at first. The first error ends all threads, and is raised.
    """
    waiting = iter(blocks)
    lock = threading.Lock()

    def worker(stop: threading.Event) -> None:
        buffer = aligned_buffer(block_bytes)
        buffer[: len(content)] = content
        while not stop.is_set():
            with lock:
                block = next(waiting, None)
            if block is None:
                return
            work(block, buffer)

    run(worker, threads)


def write_sequentially(path: Path, size_bytes: int, *, direct: bool = True) -> bool:
    """Write a new file in which no two pages are equal, and sync it.

    Args:
        path: the file.
        size_bytes: its size, which is rounded up to the alignment.
        direct: write past the page cache if the filesystem allows that; else through it.

    Returns:
        Whether it was written with direct I/O.
    """
    size_bytes = round_up(size_bytes)
    with DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, direct=direct) as file:

        def write(offset: int, buffer: mmap.mmap) -> None:
            _stamp(buffer, offset)
            file.write(memoryview(buffer)[: size_bytes - offset], offset)

        preallocate(file.descriptor, size_bytes)
        in_blocks(range(0, size_bytes, BLOCK_BYTES), write, content=os.urandom(BLOCK_BYTES))
        os.fsync(file.descriptor)
        return file.direct


def read_sequentially(path: Path, *, direct: bool = True) -> bool:
    """Read a whole file into memory block by block, past the page cache or through it, and discard it.

    Returns:
        Whether it was read with direct I/O.

    Raises:
        OSError: if the file is shorter than its size.
    """
    with DirectFile(path, os.O_RDONLY, direct=direct) as file:
        size_bytes = os.fstat(file.descriptor).st_size

        def read(offset: int, buffer: mmap.mmap) -> None:
            wanted = min(BLOCK_BYTES, size_bytes - offset)
            if file.read(memoryview(buffer), offset) < wanted:
                raise OSError(f"{path} ends before its size of {size_bytes} bytes")

        in_blocks(range(0, size_bytes, BLOCK_BYTES), read)
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


def _memory_alignment(descriptor: int) -> int:
    """The alignment of addresses that direct I/O on an open file needs: from statx(2) since Linux 6.1, else a page."""
    answer = ctypes.create_string_buffer(256)
    failed = _libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer)
    (known,) = struct.unpack_from("I", answer, 0)
    (alignment,) = struct.unpack_from("I", answer, _STX_DIO_MEM_ALIGN)
    return int(alignment) if not failed and known & _STATX_DIOALIGN and alignment else ALIGNMENT


_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STX_DIO_MEM_ALIGN = 152  # the field's offset in struct statx
