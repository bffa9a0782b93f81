"""What a node can prove of its target: by the table and the devices, and on real filesystems by the servers' counters.

What is proven is held against what the page cache can't know: pages of the image below a loop device, of the files of
an overlay's upper directory, of the bricks of GlusterFS, and what the bricks' processes fetched from their disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import block_devices, durable, page_cache
from ckpt.disk import mounts as disk_mounts
from ckpt.disk.block_devices import BlockDevice
from ckpt.disk.mounts import Mount
from ckpt.disk.page_cache import Sight
from ckpt.process_group.group import SingleProcess
from jobs.errors import TargetError
from jobs.node import proof, targets
from jobs.node.groups import ProcessGroups
from jobs.node.proof import PROVEN, Proof, examine, storage_facts
from jobs.node.storage import facts
from jobs.plan.study import Target as StudyTarget
from support.filesystems import Mounts

MIB = 2**20
ALL_SEEN = Proof(dirty_seen=True, resident_seen="cachestat", reads_counted=True)
DISK = BlockDevice("sda", "disk")
PARTITION = BlockDevice("sda1", "partition", (DISK,))


class Target:
    """A directory that lies, as far as anybody can tell, on the filesystem and the devices of a test's choice."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._monkeypatch = path, monkeypatch

    def on(self, filesystem: str, *devices: BlockDevice, options: str = "rw", seen: Proof = ALL_SEEN) -> Proof:
        """Examine it."""
        images = {device.image: device.image_filesystem for device in block_devices.all_devices(devices)}

        def mount_of(path: Path) -> Mount:
            if str(path) in images:
                return Mount(images[str(path)], "source", "rw", "/")
            return Mount(filesystem, "source", options, "/")

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


class TwoNodes(SingleProcess):
    """A group in which another node answers with its own client."""

    def __init__(self, other: tuple[str, str]) -> None:
        self._other = other

    def all_gather(self, value: Any) -> list[Any]:
        """The values of this node and the other one."""
        return [value, self._other]


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

NO_SERVERS, SERVERS = "the kernel counts no dirty pages on overlay", "keeps its files on servers"
CAN_PROVE = {
    "xfs": (PROVEN, PROVEN),
    "btrfs-zstd": (PROVEN, PROVEN),
    "ext4-buffered": (PROVEN, "through the page cache"),
    "ext4-ram": ("tmpfs keeps its files in memory", "tmpfs keeps its files in memory"),
    "overlay": (NO_SERVERS, PROVEN),
    "gluster": (SERVERS, SERVERS),
}  # fmt: skip


@pytest.mark.filesystems
@pytest.mark.parametrize("name", CAN_PROVE)
def test_what_a_real_filesystem_proves(name: str, mounts: Mounts) -> None:
    """Each proves what is known of it, on the devices that it lies on here, with what this kernel shows."""
    directory = mounts.start(name)
    below = examine(mounts.root, ProcessGroups.alone(), shifted=False)
    if below.cold != PROVEN and PROVEN in CAN_PROVE[name]:
        pytest.skip(f"nothing can be proven where the images lie: {below.cold}")
    found = examine(directory, ProcessGroups.alone(), shifted=False)
    durability, cold = CAN_PROVE[name]
    assert durability in found.durability
    assert cold in found.cold
    assert list(directory.glob(".pages-*")) == []


def written(directory: Path) -> Path:
    """A file of 16 MiB that was just written there, and not synced."""
    path = directory / f"written-{os.getpid()}"
    path.write_bytes(os.urandom(16 * MIB))
    return path


def cached_mib(path: Path, sight: Sight | None = None) -> float:
    """How much of a file is in this machine's page cache."""
    return page_cache._resident_pages(path, sight)[1] * page_cache._PAGE_BYTES / MIB


def dirty_mib(path: Path) -> float:
    """How much of a file isn't on storage yet, as cachestat counts."""
    return (page_cache.dirty_pages_of([path], Sight(dirty=True, resident="")) or 0) * page_cache._PAGE_BYTES / MIB


def read_cold(path: Path) -> bytes:
    """Sync a file, drop its pages, and read it."""
    durable.fsync_path(path)
    page_cache.evict_file(path)
    return path.read_bytes()


def image_of(directory: Path) -> tuple[Path, Path]:
    """A loop device's image, and its counters."""
    [loop] = block_devices.devices_below(directory)
    return Path(loop.image), Path("/sys/block") / loop.name / "stat"


def sectors_read(stat: Path) -> int:
    """The sectors of 512 bytes that a device has read."""
    return int(stat.read_text().split()[2])


@pytest.mark.filesystems
@pytest.mark.parametrize(("name", "from_memory"), [("xfs", False), ("ext4-buffered", True)])
def test_where_a_read_through_a_loop_device_comes_from(name: str, from_memory: bool, mounts: Mounts) -> None:
    """The device reads all of it again. What is called cold isn't in the image's cache; a buffered image's is."""
    directory = mounts.start(name)
    path = written(directory)
    image, stat = image_of(directory)
    read_cold(path)
    before = sectors_read(stat)

    read_cold(path)

    assert sectors_read(stat) - before >= 16 * MIB // 512
    assert (cached_mib(image) >= 16) is from_memory
    assert (examine(directory, ProcessGroups.alone(), shifted=False).cache(0.0) == "cold") is not from_memory
    path.unlink()


@pytest.mark.filesystems
def test_overlay_shows_its_pages_to_mincore_only(mounts: Mounts) -> None:
    """cachestat counts no page of overlay, and all of the file in the upper directory."""
    directory = mounts.start("overlay")
    path = written(directory)
    upper = mounts.root / "overlay" / "upper" / path.name
    found = examine(directory, ProcessGroups.alone(), shifted=False)

    assert (dirty_mib(path), dirty_mib(upper)) == (0, 16)
    assert (cached_mib(path), cached_mib(upper), cached_mib(path, found.sight)) == (0, 16, 16)
    assert (found.sight, found.committed) == (Sight(dirty=False, resident="mincore"), "committed-unproven")
    durable.fsync_path(path)
    page_cache.evict_file(path)
    assert (cached_mib(upper), cached_mib(path, found.sight)) == (0, 0)
    path.unlink()


@pytest.mark.filesystems
def test_an_image_in_memory_is_refused_as_memory(mounts: Mounts) -> None:
    """ext4 on an image on tmpfs is no disk; whoever wants to measure it says so."""
    directory = mounts.start("ext4-ram")

    with pytest.raises(TargetError, match="which is memory and no disk"):
        targets.check("ram", StudyTarget(path=str(directory)), directory, 1, 1)
    targets.check("ram", StudyTarget(path=str(directory), allow_tmpfs=True), directory, 1, 1)


@pytest.fixture
def overlay_in_memory(mounts: Mounts, tmp_path: Path) -> Iterator[Path]:
    """An overlay whose upper directory lies on a tmpfs, as containers have it."""
    mounts.start("ext4-ram")  # whose image lies on the tmpfs
    ram = Path(tempfile.mkdtemp(dir=mounts.root / "mnt" / ".ram"))
    for name in ("lower", "upper", "work"):
        (ram / name).mkdir()
    directory = tmp_path / "overlay"
    directory.mkdir()
    options = f"lowerdir={ram}/lower,upperdir={ram}/upper,workdir={ram}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, directory], check=True, timeout=60)
    yield directory
    subprocess.run(["umount", directory], check=True, timeout=60)
    shutil.rmtree(ram)


@pytest.mark.filesystems
def test_an_overlay_over_memory_is_refused_as_memory(overlay_in_memory: Path) -> None:
    """Its files are in memory whatever lies below it; the log's facts about it say so too."""
    where = str(overlay_in_memory)
    with pytest.raises(TargetError, match=r"overlay, whose upper directory .*/upper lies on tmpfs, which is memory"):
        targets.check("stack", StudyTarget(path=where), overlay_in_memory, 1, 1)

    targets.check("stack", StudyTarget(path=where, allow_tmpfs=True), overlay_in_memory, 1, 1)
    device = facts.of_servers(overlay_in_memory)["device"]
    assert device.startswith("memory: overlay, whose upper directory ")
    assert "keeps its files in memory" in examine(overlay_in_memory, ProcessGroups.alone(), shifted=False).cold


def bricks(root: Path, name: str) -> Iterator[Path]:
    """The files of that name in GlusterFS' bricks: on one of them."""
    return (root / "gluster").glob(f"brick*/{name}")


def fetched_by_bricks(root: Path) -> int:
    """The bytes that the bricks' processes have fetched from their disk."""
    pids = [int(path.read_text()) for path in (root / "gluster" / "run" / "vols" / "gluster").glob("*.pid")]
    counters = [Path(f"/proc/{pid}/io").read_text() for pid in pids]
    return sum(int(line.split()[1]) for text in counters for line in text.splitlines() if line.startswith("read_bytes"))


@pytest.mark.filesystems
def test_gluster_holds_what_this_kernel_can_not_see(mounts: Mounts) -> None:
    """Dirty pages lie on the bricks where the client counts none; and bricks serve loads without their disks."""
    directory = mounts.start("gluster")
    path = written(directory)
    [brick] = bricks(mounts.root, path.name)
    found = examine(directory, ProcessGroups.alone(), shifted=False)

    assert (dirty_mib(path), dirty_mib(brick)) == (0, 16)
    assert (found.dirty_seen, found.committed) == (False, "committed-unproven")
    durable.fsync_path(path)
    assert dirty_mib(brick) == 0
    before = fetched_by_bricks(mounts.root)
    content = read_cold(path)
    assert len(content) == 16 * MIB
    assert fetched_by_bricks(mounts.root) - before < MIB
    assert found.cache(0.0) == "cold-unproven"
    assert not found.reads_counted
    path.unlink()


@pytest.mark.filesystems
def test_another_clients_data_come_from_the_servers_memory(mounts: Mounts, second_client: Path) -> None:
    """What one client wrote isn't in another one's cache, and yet no disk is read: that is cold for this node only."""
    path = written(mounts.start("gluster"))
    durable.fsync_path(path)
    other = TwoNodes(("1", proof._client(path.parent)))
    found = examine(second_client, replace(ProcessGroups.alone(), world=other), shifted=True)
    before = fetched_by_bricks(mounts.root)

    assert cached_mib(second_client / path.name) == 0
    assert len((second_client / path.name).read_bytes()) == 16 * MIB
    assert fetched_by_bricks(mounts.root) - before < MIB
    assert found.cache(0.0) == "client-cold"
    path.unlink()
