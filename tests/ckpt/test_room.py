"""What a filesystem says of its room is taken for what it is: some count nothing, some leave much out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckpt.disk import mounts
from ckpt.disk.mounts import Mount
from ckpt.disk.room import Room, free_bytes_of, room_of, size, words

BRICKS = """[xlator.cluster.dht.scratch-dht.priv]
min_free_disk = 10.000000
du_stats[0].avail_percent = 92.000000
du_stats[0].avail_space = 175794176
du_stats[1].avail_percent = 93.000000
du_stats[1].avail_space = 356852736
"""


def answer(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """Let statvfs(2) answer with these counts."""
    status = {"f_frsize": 4096, "f_blocks": 1000, "f_bavail": 500, "f_files": 100, "f_favail": 50} | counts
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**status))


def test_a_local_filesystem(tmp_path: Path) -> None:
    """Space that others use at the same time aside, it is what statvfs(2) says, for a path that doesn't exist too."""
    room, status = room_of(tmp_path / "not" / "yet"), os.statvfs(tmp_path)
    assert room.capacity_bytes == status.f_blocks * status.f_frsize
    assert room.free_bytes is not None
    assert abs(room.free_bytes - status.f_bavail * status.f_frsize) < 2**30
    assert room.bricks == ()


@pytest.mark.parametrize(
    "counts",
    [
        {"f_files": 2, "f_favail": -1},
        {"f_files": 2**63 - 1, "f_favail": 2**63 - 1},
        {"f_files": 0, "f_favail": 0},
    ],
    ids=["CephFS", "SeaweedFS", "Btrfs"],
)
def test_files_that_are_not_counted(counts: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filesystems without inodes have no number of files that may still be made."""
    answer(monkeypatch, **counts)
    assert Room(4096 * 1000, 4096 * 500, None) == room_of(tmp_path)
    assert 4096 * 500 == free_bytes_of(tmp_path / "not" / "yet")


def test_space_that_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem of no blocks has not said that it is full."""
    answer(monkeypatch, f_blocks=0, f_bavail=0)
    assert Room(None, None, 50) == room_of(tmp_path)
    assert free_bytes_of(tmp_path) is None


@pytest.mark.parametrize(("graph", "bricks"), [((), (175794176, 356852736)), (("scratch-shard",), ())])
def test_bricks(
    graph: tuple[str, ...], bricks: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GlusterFS' client knows each brick's room, which counts unless files are cut into shards."""
    for part in ("scratch-client-0", "scratch-dht", "volfile", *graph):
        (tmp_path / ".meta" / "graphs" / "active" / part).mkdir(parents=True)
    (tmp_path / ".meta" / "graphs" / "active" / "scratch-dht" / "private").write_text(BRICKS)
    mount = Mount("fuse.glusterfs", "server:/scratch", "rw", str(tmp_path))
    monkeypatch.setattr(mounts, "mount_of", lambda _: mount)
    room = room_of(tmp_path)
    assert room.bricks == bricks
    assert ("must fit on one of 2 bricks, which have 176 MB to 357 MB" in words(room, mount)) == bool(bricks)


@pytest.mark.parametrize(
    ("mount", "part"),
    [
        (Mount("fuse", "mfs#192.0.2.1:9421", "rw", "/mnt"), "585 MB free, but removed files take room for a day"),
        (Mount("fuse.glusterfs", "server:/scratch", "rw", "/mnt"), "a file must fit on one brick"),
        (Mount("lustre", "mgs:/scratch", "rw", "/mnt"), "of all OSTs together"),
    ],
)
def test_what_the_number_leaves_out(mount: Mount, part: str) -> None:
    """It is said beside the number."""
    assert part in words(Room(10**12, 585_000_000, None), mount)


def test_sizes() -> None:
    """Less than a gigabyte isn't rounded up to one."""
    assert ["585 MB", "1.4 GB", "268,800.0 GB"] == [size(585_123_456), size(1_440_000_000), size(268_800 * 10**9)]
