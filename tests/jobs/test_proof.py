"""What a node can prove of its target: by the table of filesystems, the devices, and what the kernel shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.disk import block_devices
from ckpt.disk import mounts as disk_mounts
from ckpt.disk.block_devices import BlockDevice
from ckpt.disk.mounts import Mount
from jobs.node import proof
from jobs.node.groups import ProcessGroups
from jobs.node.proof import PROVEN, Proof, examine, storage_facts
from support.two_nodes import TwoNodes

ALL_SEEN = Proof(dirty_seen=True, resident_seen="cachestat", reads_counted=True)
DISK = BlockDevice("sda", "disk")
PARTITION = BlockDevice("sda1", "partition", (DISK,))


class Target:
    """A directory that lies, as far as anybody can tell, on the filesystem and the devices of a test's choice."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._monkeypatch = path, monkeypatch

    def on(
        self,
        filesystem: str,
        *devices: BlockDevice,
        source: str = "source",
        options: str = "rw",
        seen: Proof = ALL_SEEN,
    ) -> Proof:
        """Examine it."""
        images = {device.image: device.image_filesystem for device in block_devices.all_devices(devices)}

        def mount_of(path: Path) -> Mount:
            if str(path) in images:
                return Mount(images[str(path)], "source", "rw", "/")
            return Mount(filesystem, source, options, "/")

        def devices_below(path: Path) -> Sequence[BlockDevice]:
            return (DISK,) if str(path) in images else devices

        self._monkeypatch.setattr(disk_mounts, "mount_of", mount_of)
        self._monkeypatch.setattr(proof, "devices_below", devices_below)
        self._monkeypatch.setattr(proof, "_probe", lambda _: seen)
        return examine(self._path, ProcessGroups.alone(), shifted=False)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target of which everything is known that a test says."""
    return Target(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_known_filesystem_on_a_known_disk_proves_both(kind: str, target: Target) -> None:
    """Local, on a disk, and a probe whose own pages are seen: nothing else is proof."""
    found = target.on(kind, PARTITION)
    assert (found.durability, found.cold, found.committed) == (PROVEN, PROVEN, "committed")
    assert [found.cache(resident) for resident in (0.0, 0.5, float("nan"))] == [
        "cold",
        "cold-unproven",
        "cold-unproven",
    ]


@pytest.mark.parametrize(
    ("kind", "devices", "reason"),
    [
        ("newfs", [DISK], "nothing is known of filesystems of the type newfs"),
        ("unknown", [DISK], "nothing is known"),
        ("pvfs2", [], "keeps its files on servers"),
        ("nfs4", [], "keeps its files on servers"),
        ("fuse.something", [], "leaves its files to a program"),
        ("tmpfs", [], "keeps its files in memory"),
        ("ext4", [], "the devices below ext4 can't be seen from here"),
        ("ext4", [BlockDevice("zram0", "memory")], "zram0 is memory"),
        ("xfs", [BlockDevice("dm-1", "dm", (DISK, BlockDevice("rbd0", "network")))], "rbd0 lies on servers"),
        ("xfs", [BlockDevice("what1", "unknown")], "what the device what1 lies on can't be seen from here"),
        ("xfs", [BlockDevice("dm-1", "dm")], "what the device dm-1 lies on can't be seen from here"),
        ("ext4", [BlockDevice("loop1", "loop", (), "/gone", "unknown")], "loop1's image /gone can't be seen from here"),
        ("ext4", [BlockDevice("loop1", "loop", (), "/image", "tmpfs")], "/image: tmpfs keeps its files in memory"),
        ("ext4", [BlockDevice("loop1", "loop", (), "/image", "nfs4")], "/image: nfs4 keeps its files on servers"),
    ],
)  # fmt: skip
def test_neither_is_proven(kind: str, devices: list[BlockDevice], reason: str, target: Target) -> None:
    """Of what isn't known to be local down to a disk nothing is proven, and the reason says what is missing."""
    found = target.on(kind, *devices)
    assert reason in found.durability
    assert reason in found.cold
    assert (found.committed, found.cache(0.0)) == ("committed-unproven", "cold-unproven")


def test_a_reason_names_moosefs(target: Target) -> None:
    """To the kernel its type is `fuse`, of which nobody could say where it keeps its files."""
    assert target.on("fuse", source="mfs#master:9421").cold.startswith("fuse.mfs keeps its files on servers")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (
            BlockDevice("loop1", "loop", (DISK,), "/image", "ext4", direct_io=False),
            "loop1 reads its image /image through",
        ),
        (BlockDevice("loop1", "loop", (DISK,), "/image", "btrfs"), "lies on btrfs, which may cache it"),
    ],
)
def test_an_image_that_another_cache_holds(device: BlockDevice, reason: str, target: Target) -> None:
    """Through a loop device fsync reaches the disk, and a read may come from the page cache of the image."""
    found = target.on("ext4", device)
    assert found.durability == PROVEN
    assert reason in found.cold


def test_caches_of_a_filesystems_own(target: Target) -> None:
    """ZFS caches outside the page cache, so that no load is proven cold; nor is it blind to its own disks."""
    assert "its ARC" in target.on("zfs", DISK).cold


@pytest.mark.parametrize("options", ["rw,nobarrier", "rw,barrier=0,relatime"])
def test_a_mount_that_does_not_flush_the_device(options: str, target: Target, tmp_path: Path) -> None:
    """Without barriers fsync leaves data in the device's cache: that is no proof, and the guarantee says so."""
    found = target.on("ext4", DISK, options=options)
    assert "in the device's write cache" in found.durability
    assert found.cold == PROVEN
    assert "less with the mount option" in storage_facts(tmp_path, found)["fsync_guarantee"]


def test_a_kernel_that_shows_nothing(target: Target) -> None:
    """A probe whose pages aren't seen proves nothing, on whatever filesystem."""
    found = target.on("ext4", DISK, seen=Proof())
    assert "showed no dirty page" in found.durability
    assert "showed no cached page" in found.cold


@pytest.mark.parametrize(
    ("kind", "shifted", "client", "cache"),
    [
        ("nfs4", True, "another kernel 7", "client-cold"),
        ("nfs4", True, "", "cold-unproven"),  # the same kernel and mount, as of two nodes that one machine plays
        ("nfs4", False, "another kernel 7", "cold-unproven"),
        ("newfs", True, "another kernel 7", "cold-unproven"),
        ("fuse.something", True, "another kernel 7", "cold-unproven"),
        ("ext4", True, "another kernel 7", "cold"),
    ],
)
def test_what_another_node_wrote(
    kind: str, shifted: bool, client: str, cache: str, target: Target, tmp_path: Path
) -> None:
    """On a network filesystem it is not in this node's cache, if each node has a client of its own, and no more."""
    target.on(kind, *([DISK] if kind == "ext4" else []))
    world = TwoNodes(("1", client or proof._client(tmp_path)))
    groups = replace(ProcessGroups.alone(), world=world)

    found = examine(tmp_path, groups, shifted=shifted)

    assert found.cache(0.0) == cache
    assert found.cache(1.0) == "cold-unproven"


# On real filesystems.
