"""What is proven on real filesystems, by the servers' and the devices' own counters."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.disk import block_devices, durable, page_cache
from ckpt.disk.page_cache import Sight
from jobs.errors import TargetError
from jobs.node import proof, targets
from jobs.node.groups import ProcessGroups
from jobs.node.proof import PROVEN, examine
from jobs.node.storage import facts
from jobs.plan.study import Target as StudyTarget
from support.filesystems import Mounts, do_without
from support.two_nodes import TwoNodes

MIB = 2**20
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
        do_without(f"nothing can be proven where the images lie: {below.cold}")
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


def assert_counted(expected: tuple[float, ...], directory: Path, count: Callable[[Path], tuple[float, ...]]) -> Path:
    """A new file of 16 MiB is counted like that; returns it.

    Another test's sync may write it back before it is counted, but not three times.
    """
    for _ in range(3):
        path = written(directory)
        counted = count(path)
        if counted == expected:
            break
    assert counted == expected
    return path


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
    found = examine(directory, ProcessGroups.alone(), shifted=False)
    assert (found.sight, found.committed) == (Sight(dirty=False, resident="mincore"), "committed-unproven")

    def upper(path: Path) -> Path:
        return mounts.root / "overlay" / "upper" / path.name

    def cached(path: Path) -> tuple[float, ...]:
        return cached_mib(path), cached_mib(upper(path)), cached_mib(path, found.sight)

    path = assert_counted(
        (0, 16, 0, 16, 16), directory, lambda path: (dirty_mib(path), dirty_mib(upper(path)), *cached(path))
    )
    durable.fsync_path(path)
    page_cache.evict_file(path)
    assert cached(path) == (0, 0, 0)
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
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, directory], check=True, timeout=600)
    yield directory
    subprocess.run(["umount", directory], check=True, timeout=600)
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
    found = examine(directory, ProcessGroups.alone(), shifted=False)
    assert (found.dirty_seen, found.committed) == (False, "committed-unproven")

    def dirty(path: Path) -> tuple[float, ...]:
        [brick] = bricks(mounts.root, path.name)
        return dirty_mib(path), dirty_mib(brick)

    path = assert_counted((0, 16), directory, dirty)
    durable.fsync_path(path)
    assert dirty(path) == (0, 0)
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
