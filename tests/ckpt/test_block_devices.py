"""The devices below a directory: from a tree as the kernel shows it in /sys, and from real loop devices."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from ckpt.disk import block_devices, mounts
from ckpt.disk.block_devices import BlockDevice, all_devices, devices_below, lies_in_memory
from ckpt.disk.mounts import Mount


def disks(devices: Iterable[BlockDevice]) -> list[str]:
    """The names of the disks at the bottom."""
    return sorted({device.name for device in all_devices(devices) if device.kind == "disk"})


class Machine:
    """A /sys with the block devices that a test adds to it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._monkeypatch = root, monkeypatch
        (root / "dev" / "block").mkdir(parents=True)
        monkeypatch.setattr(block_devices, "_SYS", root)

    def add(self, name: str, *folders: str, parent: str = "", below: tuple[str, ...] = ()) -> Path:
        """Add a device with such folders or files below it."""
        entry = self._root / "devices" / parent / name
        entry.mkdir(parents=True)
        for folder in folders:
            (entry / folder).mkdir()
        if parent:
            (entry / "partition").write_text("1\n")
        (entry / "slaves").mkdir(exist_ok=True)
        for member in below:
            (entry / "slaves" / Path(member).name).symlink_to(self._root / "devices" / member)
        return entry

    def holds(self, path: Path, name: str) -> None:
        """Say that a directory lies on a device."""
        number = path.stat().st_dev
        link = self._root / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        link.symlink_to(self._root / "devices" / name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without any block device."""
    return Machine(tmp_path / "sys", monkeypatch)


def test_a_volume_on_raid_on_partitions(machine: Machine, tmp_path: Path) -> None:
    """A logical volume on a RAID on two disks' partitions is shown layer by layer, down to the disks."""
    for disk in ("sda", "sdb"):
        machine.add(disk, "device")
        machine.add(f"{disk}1", parent=disk)
    machine.add("md0", "md", below=("sda/sda1", "sdb/sdb1"))
    machine.add("dm-3", "dm", below=("md0",))
    machine.holds(tmp_path, "dm-3")
    found = devices_below(tmp_path)
    assert [(device.name, device.kind) for device in all_devices(found)] == [
        ("dm-3", "dm"), ("md0", "md"), ("sda1", "partition"), ("sda", "disk"), ("sdb1", "partition"), ("sdb", "disk"),
    ]  # fmt: skip
    assert disks(found) == ["sda", "sdb"]
    assert not lies_in_memory(tmp_path)


@pytest.mark.parametrize(("name", "kind"), [("ram0", "memory"), ("nbd4", "network"), ("what7", "unknown")])
def test_devices_that_are_no_disks(machine: Machine, tmp_path: Path, name: str, kind: str) -> None:
    """RAM disks, devices of the network and devices that nobody knows are no disks."""
    machine.add(name)
    machine.holds(tmp_path, name)
    found = devices_below(tmp_path)
    assert [device.kind for device in found] == [kind]
    assert disks(found) == []


@pytest.mark.parametrize(("transport", "kind"), [("pcie", "disk"), ("tcp", "network"), ("rdma", "network")])
def test_nvme_over_fabrics_is_a_servers(machine: Machine, tmp_path: Path, transport: str, kind: str) -> None:
    """The controller knows how it is reached."""
    entry = machine.add("nvme0n1", "device")
    (entry / "device" / "transport").write_text(f"{transport}\n")
    machine.holds(tmp_path, "nvme0n1")
    assert [device.kind for device in devices_below(tmp_path)] == [kind]


@pytest.mark.parametrize("way", ["session1", "rport-0:0-1"])
def test_disks_of_storage_arrays_are_servers(machine: Machine, tmp_path: Path, way: str) -> None:
    """iSCSI's and Fibre Channel's disks are called as local ones are, and lie below their connection."""
    machine.add(f"{way}/sdc", "device")
    machine.holds(tmp_path, f"{way}/sdc")
    assert [device.kind for device in devices_below(tmp_path)] == ["network"]


def test_btrfs_with_two_devices(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Btrfs has a device number that no device has: its devices are those that its mount's source belongs to."""
    source = tmp_path / "source"
    source.touch()
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("btrfs", f"{source}[/volume]", "rw", str(tmp_path)))
    for name in ("sda", "sdb"):
        machine.add(name, "device")
    link = tmp_path / "sys" / "dev" / "block" / "0:0"  # a plain file's st_rdev
    link.symlink_to(tmp_path / "sys" / "devices" / "sda")
    members = tmp_path / "sys" / "fs" / "btrfs" / "some-uuid" / "devices"
    members.mkdir(parents=True)
    for name in ("sda", "sdb"):
        (members / name).symlink_to(tmp_path / "sys" / "devices" / name)
    assert disks(devices_below(tmp_path)) == ["sda", "sdb"]


def test_an_image_in_memory(machine: Machine, tmp_path: Path) -> None:
    """A loop device whose image lies on tmpfs is memory, whatever filesystem is on it."""
    image = Path("/dev/shm") / f"image-{os.getpid()}"
    if not mounts.mount_of(image).in_memory:
        pytest.skip("/dev/shm is no filesystem in memory here")
    entry = machine.add("loop7", "loop")
    (entry / "loop" / "backing_file").write_text(f"{image}\n")
    (entry / "loop" / "dio").write_text("0\n")
    machine.holds(tmp_path, "loop7")
    image.touch()
    try:
        assert devices_below(tmp_path) == (BlockDevice("loop7", "loop", (), str(image), "tmpfs", direct_io=False),)
        assert lies_in_memory(tmp_path) == f"loop7, whose image {image} lies on tmpfs"
    finally:
        image.unlink()


def test_an_overlay_over_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New files of an overlay lie where its upper directory does; one that isn't seen here tells nothing."""
    upper = Path("/dev/shm") / f"upper-{os.getpid()}"
    if not mounts.mount_of(upper).in_memory:
        pytest.skip("/dev/shm is no filesystem in memory here")
    real, options = mounts.mount_of, f"rw,lowerdir=/lower,upperdir={upper},workdir=/work"
    overlay = Mount("overlay", "overlay", options, str(tmp_path))
    monkeypatch.setattr(mounts, "mount_of", lambda path: overlay if path == tmp_path else real(path))
    assert lies_in_memory(tmp_path) == ""
    upper.mkdir()
    try:
        assert lies_in_memory(tmp_path) == f"overlay, whose upper directory {upper} lies on tmpfs"
    finally:
        upper.rmdir()


def test_an_image_that_is_gone(machine: Machine, tmp_path: Path) -> None:
    """Of an image that can't be seen (removed, or another mount namespace's), nothing is assumed."""
    entry = machine.add("loop7", "loop")
    (entry / "loop" / "backing_file").write_text("/gone/image (deleted)\n")
    (entry / "loop" / "dio").write_text("1\n")
    machine.holds(tmp_path, "loop7")
    [loop] = devices_below(tmp_path)
    assert (loop.image_filesystem, loop.below) == ("unknown", ())


def test_no_device_is_known(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filesystems without a block device, and containers that hide /sys, have none."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("nfs4", "server:/export", "rw", str(tmp_path)))
    assert machine
    assert devices_below(tmp_path) == ()
