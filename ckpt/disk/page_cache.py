"""What of a checkpoint lies in this machine's page cache: resident pages, dirty pages, and how to evict them."""

from __future__ import annotations

import ctypes
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckpt.disk.listing import files_below

_PAGE_BYTES = mmap.PAGESIZE

_CACHESTAT = 451  # the system call's number on every architecture; Linux 6.5 and later

Dealt = tuple[int, int]
"""Which of a machine's processes this is, and how many share the work of looking at every file."""


def evict(directory: Path, dealt: Dealt = (0, 1)) -> None:
    """Ask the kernel to drop the cached pages of every file below.

    Only clean pages go, so `flush` first; and nothing is promised, so measure `resident_fraction` after.
    """
    for entry in _dealt_files(directory, dealt):
        evict_file(entry.path)


def evict_file(path: Path | str) -> None:
    """The same for one file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident_fraction(directory: Path) -> float:
    """The share of the files' pages that lie in this machine's page cache: 0 is cold, 1 is warm, NaN unknown."""
    return fraction([residency(directory)])


def residency(directory: Path, dealt: Dealt = (0, 1)) -> tuple[int, float]:
    """The pages of the files, and how many of them lie in this machine's page cache; NaN unknown."""
    found = [_resident_pages(entry.path) for entry in _dealt_files(directory, dealt)]
    return sum(pages for pages, _ in found), sum(resident for _, resident in found)


def fraction(found: Iterable[tuple[int, float]]) -> float:
    """The resident share of several processes' files together."""
    pages, resident = (sum(each) for each in zip(*found, strict=True))
    return resident / pages if pages else 0.0


def _dealt_files(directory: Path, dealt: Dealt) -> Iterator[os.DirEntry[str]]:
    """Those of the files below that are this process's to look at."""
    mine, processes = dealt
    for entry in files_below(directory):
        if zlib.crc32(os.fsencode(entry.path)) % processes == mine:
            yield entry


def resident_fraction_of(path: Path) -> float:
    """The same for one file."""
    pages, resident = _resident_pages(path)
    return resident / pages if pages else 0.0


def _resident_pages(path: Path | str) -> tuple[int, float]:
    """A file's pages, and how many of them are cached; NaN where the kernel won't tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if not size_bytes:
            return 0, 0
        found = _cachestat(descriptor)
        if found is None:
            found = _mincore(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    return -(-size_bytes // _PAGE_BYTES), float("nan") if found is None else found


def dirty_pages(directory: Path) -> int | None:
    """Pages of the files below that are not on storage yet; None where the kernel can't tell (before Linux 6.5)."""
    return dirty_pages_of([entry.path for entry in files_below(directory)])


def dirty_pages_of(paths: Iterable[Path | str]) -> int | None:
    """The same for some files."""
    dirty = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            counts = _cachestat_counts(descriptor)
        finally:
            os.close(descriptor)
        if counts is None:
            return None
        dirty += counts.dirty + counts.under_writeback
    return dirty


_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _PageCounts:
    cached: int
    dirty: int
    under_writeback: int


def _cachestat_counts(descriptor: int) -> _PageCounts | None:
    """The pages of an open file by cachestat(2); None where the kernel lacks it."""
    whole_file = (ctypes.c_uint64 * 2)(0, 0)  # offset, length: 0 means to the end
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, under writeback, evicted, recently evicted
    failed = _libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole_file), ctypes.byref(counts), 0)
    return None if failed else _PageCounts(*(int(count) for count in counts[:3]))


def _cachestat(descriptor: int) -> int | None:
    """Cached pages of an open file by cachestat(2); None where the kernel lacks it."""
    counts = _cachestat_counts(descriptor)
    return None if counts is None else counts.cached


def _mincore(descriptor: int, size_bytes: int) -> int | None:
    """Cached pages of an open file by mincore(2); None where the kernel won't tell."""
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(
        None, ctypes.c_size_t(size_bytes), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)
    )
    if address == ctypes.c_void_p(-1).value:
        return None
    flags = (ctypes.c_ubyte * -(-size_bytes // _PAGE_BYTES))()
    failed = _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), flags)
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))
    return None if failed else sum(flag & 1 for flag in bytes(flags))
