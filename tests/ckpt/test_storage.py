"""What a directory lies on, and what lies in it: the facts behind every cold load and every size."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import pytest

from ckpt.disk import durable, listing, mounts, page_cache
from ckpt.disk.listing import Inventory
from ckpt.disk.mounts import Mount

pytestmark = pytest.mark.every_filesystem

PAGE = mmap.PAGESIZE
SIZES_BYTES = [1, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE, 1_000_001]


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A directory whose files can leave the page cache, with files of odd sizes in several directories."""
    filesystem = mounts.mount_of(tmp_path).filesystem
    if mounts.mount_of(tmp_path).in_memory:
        pytest.skip(f"the temporary directory lies in memory ({filesystem}): use pytest --basetemp on a disk")
    for number, size_bytes in enumerate(SIZES_BYTES):
        path = tmp_path / f"level {number % 2}" / "below" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size_bytes))
    (tmp_path / "empty").touch()
    return tmp_path


def read_all(directory: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {entry.path: Path(entry.path).read_bytes() for entry in listing.files_below(directory)}


def cached_pages(directory: Path) -> list[tuple[int | None, int | None]]:
    """What cachestat(2) and mincore(2) say about each file that is not empty."""
    found = []
    for entry in listing.files_below(directory):
        if size_bytes := entry.stat().st_size:
            with Path(entry.path).open("rb") as file:
                found.append((page_cache._cachestat(file.fileno()), page_cache._mincore(file.fileno(), size_bytes)))
    return found


@pytest.mark.every_filesystem(only="sees_pages")
def test_eviction_is_proven(on_disk: Path) -> None:
    """All pages are resident after writing, none after flush and evict, all again after reading; no byte is lost."""
    written = read_all(on_disk)
    assert page_cache.resident_fraction(on_disk) == 1.0
    durable.flush(on_disk)
    page_cache.evict(on_disk)
    assert page_cache.resident_fraction(on_disk) < 0.01
    assert written == read_all(on_disk)
    assert page_cache.resident_fraction(on_disk) == 1.0


@pytest.mark.every_filesystem(only="sees_pages")
def test_eviction_that_fails_is_seen(on_disk: Path) -> None:
    """Pages that another process holds stay, whatever was asked of the kernel, and the fraction says how many."""
    held = on_disk / "level 1" / "below" / "5"
    durable.flush(on_disk)
    with held.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert len(bytes(mapped)) == held.stat().st_size
        page_cache.evict(on_disk)
        pages = [math.ceil(size_bytes / PAGE) for size_bytes in SIZES_BYTES]
        assert pages[5] / sum(pages) <= page_cache.resident_fraction(on_disk) < 1.0
    page_cache.evict(on_disk)
    assert page_cache.resident_fraction(on_disk) < 0.01


def test_unsynced_data_survives_eviction(on_disk: Path) -> None:
    """Evicting what has not been flushed loses nothing."""
    written = read_all(on_disk)
    page_cache.evict(on_disk)
    assert written == read_all(on_disk)


@pytest.mark.every_filesystem(only="sees_pages")
def test_cachestat_agrees_with_mincore(on_disk: Path) -> None:
    """Two system calls that count cached pages count the same ones: all, none, and some."""
    counts = cached_pages(on_disk)
    if None in {count for pair in counts for count in pair}:
        pytest.skip("this kernel lacks cachestat(2), new in Linux 6.5, or forbids mincore(2)")
    assert sum(math.ceil(size_bytes / PAGE) for size_bytes in SIZES_BYTES) == sum(pair[0] or 0 for pair in counts)
    assert all(one == other for one, other in counts)

    durable.flush(on_disk)
    page_cache.evict(on_disk)
    assert all(one == other for one, other in cached_pages(on_disk))

    path = on_disk / "level 1" / "below" / "5"
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        file.seek(100 * PAGE)
        file.read(1)
        some = page_cache._cachestat(file.fileno())
        assert 0 < (some or 0) < math.ceil(path.stat().st_size / PAGE)
        assert page_cache._mincore(file.fileno(), path.stat().st_size) == some


@pytest.mark.every_filesystem(only="sees_pages")
def test_either_system_call_will_do(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cachestat mincore answers; without both the answer is NaN, which no threshold takes for cold."""
    monkeypatch.setattr(page_cache, "_cachestat", lambda _descriptor: None)
    assert page_cache.resident_fraction(on_disk) == 1.0
    monkeypatch.setattr(page_cache, "_mincore", lambda _descriptor, _size_bytes: None)
    assert math.isnan(page_cache.resident_fraction(on_disk))


@pytest.mark.every_filesystem(only="counts_blocks")
def test_inventory(tmp_path: Path) -> None:
    """Files are counted at every depth; links are not followed, holes are not allocated, 1 MiB is not small."""
    outside, directory = tmp_path / "outside", tmp_path / "directory"
    deep = directory / "a" / ".hidden"
    for path in (outside, deep):
        path.mkdir(parents=True)
    (outside / "not mine").write_bytes(b"x" * 5000)
    (directory / "linked directory").symlink_to(outside)
    (directory / "linked file").symlink_to(outside / "not mine")
    os.mkfifo(directory / "pipe")
    (directory / "empty").touch()
    (directory / "almost").write_bytes(b"x" * (2**20 - 1))
    (deep / "exactly").write_bytes(b"x" * 2**20)
    with (deep / "sparse").open("wb") as file:
        file.truncate(10 * 2**20)
    durable.flush(directory)
    found = listing.inventory(directory)
    expected = Inventory(
        file_count=4,
        apparent_bytes=12 * 2**20 - 1,
        allocated_bytes=found.allocated_bytes,
        small_file_count=2,
        largest_file_bytes=10 * 2**20,
        directory_count=3,
    )
    assert expected == found
    if not mounts.mount_of(tmp_path).in_memory:
        assert 2 * 2**20 <= found.allocated_bytes < 3 * 2**20


def test_mount(weird_path: Path) -> None:
    """A directory, a file in it, and a path that does not exist yet lie on the mount that holds the directory."""
    found = mounts.mount_of(weird_path)
    assert os.path.ismount(found.mount_point)
    assert weird_path.is_relative_to(found.mount_point)
    assert Path(found.mount_point).stat().st_dev == weird_path.stat().st_dev
    assert found.options.split(",")[0] in {"rw", "ro"}
    (weird_path / "file").touch()
    assert found == mounts.mount_of(weird_path / "file")
    assert found == mounts.mount_of(weird_path / "not" / "yet")


def test_another_mount() -> None:
    """A path below another mount lies on that one."""
    found = mounts.mount_of(Path("/proc/self"))
    assert (found.filesystem, found.mount_point) == ("proc", "/proc")


@pytest.mark.parametrize(
    ("filesystem", "in_memory"), [("tmpfs", True), ("ramfs", True), ("ext4", False), ("lustre", False)]
)
def test_filesystems_in_memory(filesystem: str, in_memory: bool) -> None:
    """Memory is told from disks."""
    assert in_memory == Mount(filesystem, "source", "rw", "/mnt").in_memory


def test_mount_without_findmnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where findmnt is missing, the mount is unknown, and nothing fails."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mounts.mount_of(tmp_path).filesystem == "unknown"
    assert not mounts.mount_of(tmp_path).in_memory


def test_the_way_to_a_directory_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made the directories above a checkpoint may not have synced them: their entries are, up to the mount point,
    and once in a process.
    """
    synced: list[Path] = []
    monkeypatch.setattr(durable, "_durable_entries", set())
    monkeypatch.setattr(durable, "fsync_path", lambda path: synced.append(Path(path)))
    (tmp_path / "mine").mkdir()
    device = tmp_path.stat().st_dev
    expected = [path for path in (tmp_path, *tmp_path.parents) if path.stat().st_dev == device]
    assert expected[0] == tmp_path
    durable.make_directories(tmp_path / "mine")
    assert expected == synced
    durable.make_directories(tmp_path / "mine")
    assert expected == synced
    durable.make_directories(tmp_path / "mine" / "new")
    assert [tmp_path / "mine", tmp_path / "mine"] == synced[len(expected) :]


def test_a_directory_above_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is its owner's to sync, and no reason not to save."""

    def refuse(path: Path | str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(durable, "_durable_entries", set())
    monkeypatch.setattr(durable, "fsync_path", refuse)
    durable.make_directories(tmp_path)


def test_a_directory_that_cannot_be_listed_is_not_flushed(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and its files' names may not be on storage: that is an error, also where files are synced already."""
    scandir = os.scandir

    def failing(path: str) -> object:
        if Path(path).name == "below":
            raise OSError(116, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    for files in (True, False):
        with pytest.raises(OSError, match="Stale file handle"):
            durable.flush(on_disk, files=files)
