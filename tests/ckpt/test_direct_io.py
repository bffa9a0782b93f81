"""Direct I/O: what is written, what is read, and what happens where a filesystem refuses it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import direct_io, mounts, page_cache, sequential
from ckpt.disk.filesystems import Kind
from ckpt.disk.page_cache import Sight

pytestmark = pytest.mark.every_filesystem

SIZES = [1, 4096, sequential.BLOCK_BYTES - 1, sequential.BLOCK_BYTES, 3 * sequential.BLOCK_BYTES + 5000]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_file_of_that_size_is_written_and_synced(size_bytes: int, tmp_path: Path) -> None:
    """The size is rounded up to the alignment, every page is unlike any other, and none is left dirty."""
    path = tmp_path / "file"
    sequential.write_sequentially(path, size_bytes)

    content = path.read_bytes()
    assert direct_io.round_up(size_bytes) == len(content)
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    assert len(pages) == len(set(pages))
    assert page_cache.dirty_pages(tmp_path, Sight(dirty=True, resident="")) in {0, None}


@pytest.mark.every_filesystem(only="direct")
def test_past_the_page_cache(tmp_path: Path) -> None:
    """Where the filesystem takes direct I/O, neither writing nor reading leaves pages in the cache."""
    path = tmp_path / "file"
    if not sequential.write_sequentially(path, 2**24):
        pytest.skip(f"{mounts.mount_of(tmp_path).filesystem} refuses O_DIRECT")
    assert sequential.read_sequentially(path)

    assert page_cache.resident_fraction(tmp_path) == 0


def test_a_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without direct I/O gets buffered files, and the caller hears so."""
    real = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)

    assert not sequential.write_sequentially(tmp_path / "file", 10_000)
    assert not sequential.read_sequentially(tmp_path / "file")
    assert direct_io.round_up(10_000) == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_a_late_refusal(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that takes O_DIRECT when it opens a file, and refuses the first request, is served through the
    page cache.
    """
    real = getattr(os, call)

    def refuse(descriptor: int, *rest: object) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        count: int = real(descriptor, *rest)
        return count

    sequential.write_sequentially(tmp_path / "whole", 100_000)
    monkeypatch.setattr(os, call, refuse)
    written = sequential.write_sequentially(tmp_path / "file", 100_000)
    read = sequential.read_sequentially(tmp_path / "whole")

    assert not (written if call == "pwrite" else read)
    assert direct_io.round_up(100_000) == (tmp_path / "file").stat().st_size


def test_a_late_refusal_to_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them get the refusal before one has turned to the page cache, and none ends the write by it."""
    real = os.pwrite
    together = threading.Barrier(sequential.THREADS)

    def refuse(descriptor: int, *rest: Any) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            together.wait(30)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, *rest)

    monkeypatch.setattr(os, "pwrite", refuse)
    path = tmp_path / "file"
    size_bytes = sequential.THREADS * sequential.BLOCK_BYTES
    with direct_io.DirectFile(path, os.O_WRONLY | os.O_CREAT) as file:
        if not fcntl.fcntl(file.descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            pytest.skip("this filesystem refuses O_DIRECT at once")
    path.unlink()
    assert not sequential.write_sequentially(path, size_bytes)
    assert path.stat().st_size == size_bytes


def test_direct_io_that_is_ignored_is_not_called_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that takes O_DIRECT, says nothing of its alignment, and leaves pages in the cache; tmpfs; and Btrfs
    since Linux 6.14.
    """
    written = sequential.write_sequentially(tmp_path / "file", 100_000)
    monkeypatch.setattr(direct_io, "direct_alignment", lambda _: None)
    monkeypatch.setattr(page_cache, "is_uncached", lambda *_: False)
    assert not sequential.write_sequentially(tmp_path / "other", 100_000)
    assert not sequential.read_sequentially(tmp_path / "other")
    monkeypatch.undo()
    mount = mounts.mount_of(tmp_path)
    release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    ignored = mount.facts.kind is Kind.MEMORY or (mount.filesystem == "btrfs" and release >= (6, 14))
    assert not (written and ignored)


def test_pages_in_the_cache_are_seen(tmp_path: Path) -> None:
    """A part of a file that was written through the page cache is in it, and one that was evicted isn't."""
    if mounts.mount_of(tmp_path).in_memory:
        pytest.skip("tmpfs evicts nothing")
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    assert not page_cache.is_uncached(path, 8192, 100_000)
    os.sync()
    page_cache.evict_file(path)
    assert page_cache.is_uncached(path, 8192, 100_000)
    assert not page_cache.is_uncached(tmp_path / "none", 0, 1)


def test_another_error_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is told, and not tried again through the page cache."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        sequential.write_sequentially(tmp_path / "file", 100_000)


def test_blocks_are_each_worked_on_once() -> None:
    """Every block goes to one thread, in order, with an aligned buffer; the first error ends it."""
    seen: list[int] = []
    direct_io.in_blocks(range(100), lambda block, _: seen.append(block), threads=3, block_bytes=4096)
    assert list(range(100)) == sorted(seen)

    def fail(block: int, _: object) -> None:
        seen.append(block)
        if block == 5:
            raise ValueError("enough")

    seen.clear()
    with pytest.raises(ValueError, match="enough"):
        direct_io.in_blocks(range(10_000_000), fail, threads=3, block_bytes=4096)
    assert len(seen) < 10_000_000


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """An existing file is left alone."""
    (tmp_path / "file").write_text("precious")

    with pytest.raises(FileExistsError):
        sequential.write_sequentially(tmp_path / "file", 10)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_that_shrinks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ends with an error, not with the bytes that were there."""
    path = tmp_path / "file"
    sequential.write_sequentially(path, 100_000)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)

    with pytest.raises(OSError, match="before its size"):
        sequential.read_sequentially(path)
