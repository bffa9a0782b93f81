"""Files at the disk's speed from Python: past the page cache or through it, in large requests, from a few threads.

`os.pwrite` and `os.preadv` release the interpreter's lock while the kernel works, so a few threads keep a disk busy.
Where a filesystem refuses `O_DIRECT`, or takes it and ignores it, a file goes through the page cache, and
`DirectFile.direct` is False. What the kernel or the filesystem lacks besides (huge pages, preallocation, writeback on
request) is done without.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import re
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from ckpt.disk import page_cache
from ckpt.threads import run

T = TypeVar("T")

ALIGNMENT = 4096
"""The alignment of addresses, offsets and sizes. Most devices need 512; older network filesystems need a page."""

DATA_OFFSET = 64
"""Where a large tensor should begin in a file, modulo the alignment: as in memory that the C library aligns to 64."""

_PREFAULT_BYTES = 4 * 2**20

_REFUSALS = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""How kernels and filesystems answer what they can't do."""


def round_up(size_bytes: int) -> int:
    """Round up to a multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def aligned_buffer(size_bytes: int) -> mmap.mmap:
    """Allocate zeroed memory at a page boundary, in huge pages if the kernel has them."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
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
    """A file that is read and written past the page cache, or through it.

    Offsets and lengths must be aligned to `ALIGNMENT`, addresses to `memory_alignment`; a file that isn't opened with
    `direct` needs neither. Only a read at the file's end may return less. What is written through the page cache starts
    on its way to storage at once, so that a later fsync finds little to do.

    Args:
        path: the file.
        flags: those of open(2).
        direct: go past the page cache, if the filesystem doesn't refuse that for the file or for any request.

    Attributes:
        direct: whether data go past the page cache of this machine. It is known after the first request: filesystems
            that accept `O_DIRECT` and ignore it leave its pages in the cache. False where that can't be found out.
        memory_alignment: what addresses must be aligned to.
    """

    def __init__(self, path: Path, flags: int, *, direct: bool = True) -> None:
        self.path = path
        self._flagged = direct
        """Whether the descriptor has `O_DIRECT`."""
        try:
            self.descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o666)
        except OSError as error:
            if not direct or error.errno not in _REFUSALS:
                raise
            self._flagged = False
            self.descriptor = os.open(path, flags & ~os.O_EXCL, 0o666)  # the refused open may have made the file
        known = direct_alignment(self.descriptor) if self._flagged else 0
        self.direct = self._flagged and known != 0
        self.memory_alignment = (known or ALIGNMENT) if self._flagged else 1
        self._unproven = self._flagged and known is None

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
        if not self._flagged:
            start_writeback(self.descriptor, offset, len(data))
        self._prove(offset, len(data))

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from that offset; returns the number of bytes that the file had."""
        done = 0
        while done < len(buffer):
            part, at = buffer[done:], offset + done
            got = self._or_through_the_cache(lambda: os.preadv(self.descriptor, [part], at))  # noqa: B023  # called at once
            if not got:
                break
            done += got
            if self._flagged and done % ALIGNMENT:  # the end of the file: a direct read from here would be refused
                break
        self._prove(offset, done)
        return done

    def _or_through_the_cache(self, work: Callable[[], int]) -> int:
        """Call, and again without `O_DIRECT`: some filesystems accept it for `open`, and refuse the first request."""
        flagged = self._flagged  # another thread may be the first to be refused
        try:
            return work()
        except OSError as error:
            if not flagged or error.errno not in _REFUSALS:
                raise
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._flagged = self.direct = self._unproven = False
        return work()

    def _prove(self, offset: int, size_bytes: int) -> None:
        """Look, after the first request, whether it left its pages in the page cache."""
        if self._unproven and size_bytes:
            self._unproven = False
            self.direct = page_cache.is_uncached(self.path, offset, size_bytes)


def preallocate(descriptor: int, size_bytes: int) -> None:
    """Reserve a file's blocks, so that writes don't search for them; does nothing if that isn't supported.

    `os.posix_fallocate` would write the whole file then.
    """
    _libc.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(size_bytes))


def start_writeback(descriptor: int, offset: int = 0, size_bytes: int = 0) -> None:
    """Let the kernel begin to write a part of a file to storage, without waiting; of size 0: to the file's end.

    Does nothing where that isn't supported. Errors of writing are fsync's to report.
    """
    _libc.sync_file_range(descriptor, ctypes.c_long(offset), ctypes.c_long(size_bytes), _SYNC_FILE_RANGE_WRITE)


def start_writeback_of(path: Path) -> None:
    """Let the kernel begin to write a whole file to storage, without waiting."""
    with suppress(OSError):  # what is wrong with the file, its sync will say
        descriptor = os.open(path, os.O_RDONLY)
        try:
            start_writeback(descriptor)
        finally:
            os.close(descriptor)


def in_blocks(
    blocks: Iterable[T],
    work: Callable[[T, mmap.mmap], None],
    *,
    threads: int,
    block_bytes: int,
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


def direct_alignment(descriptor: int) -> int | None:
    """The alignment of addresses that direct I/O on an open file needs, from statx(2).

    Returns:
        0 if the file takes no direct I/O, and None if it isn't known: before Linux 6.1, and of filesystems that don't
        say, among which are those that ignore `O_DIRECT`.
    """
    answer = ctypes.create_string_buffer(256)
    failed = _libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer)
    (known,) = struct.unpack_from("I", answer, 0)
    (alignment,) = struct.unpack_from("I", answer, _STX_DIO_MEM_ALIGN)
    if not failed and known & _STATX_DIOALIGN:
        return int(alignment)
    return 0 if _ignores_direct(descriptor) else None


def _ignores_direct(descriptor: int) -> bool:
    """Return whether an open file's filesystem is known to take `O_DIRECT`, and to copy the data all the same."""
    answer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(descriptor, answer):
        return False
    (kind,) = struct.unpack_from("l", answer, 0)
    release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    return kind in _IGNORES_DIRECT_SINCE and release >= _IGNORES_DIRECT_SINCE[kind]


_IGNORES_DIRECT_SINCE = {0x9123683E: (6, 14), 0x2FC12FC1: (0, 0)}
"""Filesystems that ignore `O_DIRECT` and leave no page behind, by the kernel's number, with the first such release.

Btrfs does so for files with checksums; ZFS has a cache of its own, and takes direct I/O only since its 2.3.
"""

_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23
_SYNC_FILE_RANGE_WRITE = 2
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STX_DIO_MEM_ALIGN = 152  # the field's offset in struct statx
