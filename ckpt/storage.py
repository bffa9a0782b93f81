"""What a directory lies on, and what lies in it: filesystem, room, durability, page cache, inventory."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt.threads import over

SMALL_FILE_BYTES = 2**20
"""Files under 1 MiB count as small: parallel filesystems handle them badly."""

MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})

_OWN_CACHES = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "smb3", "wekafs",
    "zfs",
})  # fmt: skip
"""Filesystems whose data may lie in a cache that isn't the kernel's page cache."""

_PAGE_BYTES = mmap.PAGESIZE
_CACHESTAT = 451  # the system call's number on every architecture; Linux 6.5 and later
_SYNC_THREADS = 8
"""Concurrent fsyncs let a journal commit several files at once; more did not help on one disk."""


Dealt = tuple[int, int]
"""Which of a machine's processes this is, and how many share the work of looking at every file."""


@dataclass(frozen=True, slots=True)
class Mount:
    """The filesystem that holds a path; `unknown` where findmnt can't tell."""

    filesystem: str
    source: str
    options: str
    mount_point: str

    @property
    def in_memory(self) -> bool:
        """Whether its files are memory: no disk to measure."""
        return self.filesystem in MEMORY_FILESYSTEMS


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a checkpoint left on disk."""

    file_count: int
    apparent_bytes: int
    allocated_bytes: int
    small_file_count: int
    largest_file_bytes: int
    directory_count: int
    """The checkpoint's own included."""


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def mount_of(path: Path) -> Mount:
    """The mount that holds a path (or its nearest existing parent)."""
    command = ["findmnt", "--json", "--target", str(existing_parent(path))]
    command += ["--output", "FSTYPE,SOURCE,OPTIONS,TARGET"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
        found = json.loads(answer)["filesystems"][0]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return Mount("unknown", "unknown", "unknown", "unknown")
    return Mount(found["fstype"], found["source"], found["options"], found["target"])


def free_bytes(path: Path) -> int:
    """What an unprivileged user may still write there."""
    return shutil.disk_usage(existing_parent(path)).free


def files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Every regular file below a directory, depth first; links are not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield entry


def inventory(directory: Path) -> Inventory:
    """Count and weigh the files below a directory, or one file."""
    directories = sum(1 for _ in os.walk(directory))
    count = apparent = allocated = small = largest = 0
    entries = files_below(directory) if directory.is_dir() else [directory]
    for status in (entry.stat(follow_symlinks=False) for entry in entries):
        count += 1
        apparent += status.st_size
        allocated += status.st_blocks * 512  # by definition of st_blocks
        small += status.st_size < SMALL_FILE_BYTES
        largest = max(largest, status.st_size)
    return Inventory(count, apparent, allocated, small, largest, directories)


def flush(directory: Path, *, files: bool = True) -> None:
    """Bring a directory's content to stable storage: every file (unless already there), then every directory.

    Raises:
        OSError: if the kernel reports that something could not be written.
    """
    if files:
        sync_files([entry.path for entry in files_below(directory)])
    for parent, _, _ in os.walk(directory, topdown=False):
        fsync_path(parent)


def sync_files(paths: Sequence[Path | str]) -> None:
    """Bring files to stable storage, several at a time.

    Raises:
        OSError: as above.
    """
    over(paths, fsync_path, min(_SYNC_THREADS, len(paths)))


def fsync_path(path: Path | str) -> None:
    """Bring one file, or one directory's entries, to stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Make a directory and those above it where they are missing, and sync the entries that lead to it.

    Whoever made a directory may not have synced its entry: a power cut would take it, and all that it holds. So the
    chain is synced up to the mount point, and no entry twice in one process.

    Raises:
        OSError: if a directory can't be made, or one that was made can't be synced.
    """
    if not path.is_dir():
        make_directories(path.parent)
        path.mkdir(exist_ok=True)
        fsync_path(path.parent)
    _sync_chain(path.resolve())


_durable_entries: set[tuple[str, int]] = set()
"""The directories whose way from the mount point this process has synced: their paths and inodes."""


def _sync_chain(path: Path) -> None:
    device = path.stat().st_dev
    for directory in (path, *path.parents):
        key = str(directory), directory.stat().st_ino
        at_mount_point = directory.parent == directory or directory.parent.stat().st_dev != device
        if key in _durable_entries or at_mount_point:
            return
        with suppress(OSError):  # one above that may not be opened: it is its owner's to sync
            fsync_path(directory.parent)
            _durable_entries.add(key)


def write_whole(path: Path, content: bytes, *, sync: bool) -> None:
    """Write a small file that has its name only when it is whole; with `sync`, its data is on stable storage then."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    partial.rename(path)


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


def cache_caveat(mount: Mount) -> str:
    """Why a cold load can't be proven on this filesystem, and what to do; empty where it can."""
    if mount.filesystem in _OWN_CACHES or mount.filesystem.startswith("fuse"):
        return (
            f"{mount.filesystem} caches outside this kernel's page cache (in its client or its servers), where nobody "
            "can look: read on another node than wrote, read with O_DIRECT, or take a state of over three times the "
            "memory"
        )
    return ""


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
