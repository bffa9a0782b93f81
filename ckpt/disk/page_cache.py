"""The pages of a checkpoint in this machine's page cache: how many are resident or dirty, and how to evict them.

A count of 0 may mean that the kernel doesn't count there: cachestat(2) sees no dirty page on FUSE, and no page at all
on overlayfs. Who builds a claim on a count has to know what can be seen (`Sight`), by a probe for example.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckpt.disk.listing import files_below

_PAGE_BYTES = mmap.PAGESIZE

_CACHESTAT = 451  # the system call's number on every architecture; Linux 6.5 and later

_LOWEST_BIT = bytes(flag & 1 for flag in range(256))
"""The other bits of mincore's answer are reserved."""

Worker = tuple[int, int]
"""The number of this process, from 0, and how many processes of a machine divide the files among them."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the kernel shows of the files in a directory."""

    dirty: bool
    """Whether it counts pages that aren't on storage yet."""
    resident: Literal["cachestat", "mincore", ""]
    """The system call that counts pages in the page cache; empty if none does."""


def probe(file: Path) -> Sight:
    """Find out what the kernel shows of a file that was just written, and not synced."""
    pages = -(-file.stat().st_size // _PAGE_BYTES)
    dirty = bool(dirty_pages_of([file], Sight(dirty=True, resident="")))
    calls: tuple[Literal["cachestat", "mincore"], ...] = ("cachestat", "mincore")
    sights = [Sight(dirty, call) for call in calls]
    return next((sight for sight in sights if _resident_pages(file, sight)[1] == pages), Sight(dirty, ""))


def evict(directory: Path, worker: Worker = (0, 1)) -> None:
    """Ask the kernel to drop the cached pages of every file below.

    Only clean pages are dropped, so call `flush` first. The kernel may keep pages, so measure `residency` afterwards.
    """
    for entry in _assigned_files(directory, worker):
        evict_file(entry.path)


def evict_file(path: Path | str) -> None:
    """Ask the kernel to drop the cached pages of one file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a kernel without it; what stays is measured
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident_fraction(directory: Path) -> float:
    """The fraction of the files' pages that are in this machine's page cache: 0 is cold, 1 warm, NaN unknown."""
    return fraction([residency(directory)])


def residency(directory: Path, worker: Worker = (0, 1), sight: Sight | None = None) -> tuple[int, float]:
    """The number of the files' pages, and how many of them are in this machine's page cache; NaN if unknown.

    Without `sight` a count of 0 may mean that the kernel doesn't count there.
    """
    counts = [_resident_pages(entry.path, sight) for entry in _assigned_files(directory, worker)]
    return sum(pages for pages, _ in counts), sum(resident for _, resident in counts)


def fraction(counts: Iterable[tuple[int, float]]) -> float:
    """The resident fraction of all pages, from the counts of several processes."""
    pages, resident = (sum(numbers) for numbers in zip(*counts, strict=True))
    return resident / pages if pages else 0.0


def _assigned_files(directory: Path, worker: Worker) -> Iterator[os.DirEntry[str]]:
    """Yield the files that are assigned to this process."""
    number, count = worker
    for entry in files_below(directory):
        if zlib.crc32(os.fsencode(entry.path)) % count == number:
            yield entry


def resident_fraction_of(path: Path) -> float:
    """The fraction of one file's pages that are in this machine's page cache."""
    pages, resident = _resident_pages(path)
    return resident / pages if pages else 0.0


def _resident_pages(path: Path | str, sight: Sight | None = None) -> tuple[int, float]:
    """The number of a file's pages, and how many of them are cached; NaN if unknown."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if not size_bytes:
            return 0, 0
        cached = _cachestat(descriptor) if sight is None or sight.resident == "cachestat" else None
        if cached is None and (sight is None or sight.resident == "mincore"):
            cached = _mincore(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    return -(-size_bytes // _PAGE_BYTES), math.nan if cached is None else cached


def is_uncached(path: Path, offset: int, size_bytes: int) -> bool:
    """Return whether no page of a part of a file is in the page cache; False where that isn't known."""
    begin = offset // _PAGE_BYTES * _PAGE_BYTES
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Not cachestat: of stacked filesystems, it knows none of the pages.
        return _mincore(descriptor, offset + size_bytes - begin, begin) == 0
    finally:
        os.close(descriptor)


def dirty_pages(directory: Path, sight: Sight) -> int | None:
    """Count the pages of the files below that aren't on storage yet; None where they can't be seen."""
    return dirty_pages_of([entry.path for entry in files_below(directory)], sight)


def dirty_pages_of(paths: Iterable[Path | str], sight: Sight) -> int | None:
    """Count the pages of some files that aren't on storage yet; None where they can't be seen."""
    if not sight.dirty:
        return None
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
    """Count an open file's pages with cachestat(2); None if the kernel lacks it."""
    whole_file = (ctypes.c_uint64 * 2)(0, 0)  # offset, length: 0 means to the end
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, under writeback, evicted, recently evicted
    failed = _libc.syscall(_CACHESTAT, descriptor, ctypes.byref(whole_file), ctypes.byref(counts), 0)
    return None if failed else _PageCounts(*(int(count) for count in counts[:3]))


def _cachestat(descriptor: int) -> int | None:
    """Count an open file's cached pages with cachestat(2); None if the kernel lacks it."""
    counts = _cachestat_counts(descriptor)
    return None if counts is None else counts.cached


def _mincore(descriptor: int, size_bytes: int, offset: int = 0) -> int | None:
    """Count an open file's cached pages, from an offset that a page begins at, with mincore(2); None if that fails."""
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(
        None, ctypes.c_size_t(size_bytes), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(offset)
    )
    if address == ctypes.c_void_p(-1).value:
        return None
    flags = (ctypes.c_ubyte * -(-size_bytes // _PAGE_BYTES))()
    failed = _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), flags)
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))
    return None if failed else bytes(flags).translate(_LOWEST_BIT).count(1)
