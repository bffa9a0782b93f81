"""The block devices that a directory lies on, down to the disks: partitions, device mapper, RAID, loop devices.

What the kernel says in /sys, which needs no privileges. Where a container hides it, nothing is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckpt.disk import mounts
from ckpt.disk.filesystems import Kind, facts

_SYS = Path("/sys")

_DEEPEST = 16
"""Images may lie in images; a loop device whose image lies on itself exists for a moment only."""

DeviceKind = Literal["disk", "partition", "dm", "md", "loop", "memory", "network", "unknown"]

_BY_NAME: tuple[tuple[str, DeviceKind], ...] = (
    ("ram", "memory"), ("zram", "memory"), ("nbd", "network"), ("rbd", "network"), ("drbd", "network"),
)  # fmt: skip
"""Kinds that only the name shows."""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One block device and what it lies on.

    Attributes:
        name: the kernel's name: `nvme0n1p2`, `dm-0`.
        kind: what it is; `network` for disks of servers.
        below: the devices that it lies on; empty for a disk, and where they can't be seen. A loop device lies on those
            below its image.
        image: the path of a loop device's file; empty for others.
        image_filesystem: the type of the filesystem that the image lies on.
        direct_io: whether a loop device passes the page cache of its image; true for others.
    """

    name: str
    kind: DeviceKind
    below: tuple[BlockDevice, ...] = ()
    image: str = ""
    image_filesystem: str = ""
    direct_io: bool = True


def devices_below(path: Path) -> tuple[BlockDevice, ...]:
    """The devices that hold a file or directory, or would; several for Btrfs; empty where no device is known."""
    return _devices_below(path, 0)


def all_devices(devices: Iterable[BlockDevice]) -> Iterator[BlockDevice]:
    """Yield devices and all that they lie on, from the top."""
    for device in devices:
        yield device
        yield from all_devices(device.below)


def lies_in_memory(path: Path) -> str:
    """What makes a path's files lie in memory; empty if nothing.

    That is its filesystem, a RAM disk, or what holds an overlay's new files or a loop device's image.
    """
    mount = mounts.mount_of(path)
    if mount.in_memory:
        return mount.filesystem
    if mount.upper and Path(mount.upper).is_dir():
        memory = lies_in_memory(Path(mount.upper))
        return f"{mount.filesystem}, whose upper directory {mount.upper} lies on {memory}" if memory else ""
    return next(filter(None, map(_memory, all_devices(devices_below(path)))), "")


def _memory(device: BlockDevice) -> str:
    if device.kind == "memory":
        return f"the RAM disk {device.name}"
    if device.image and facts(device.image_filesystem).kind in {Kind.MEMORY, Kind.STACKED}:
        memory = lies_in_memory(Path(device.image))
        return f"{device.name}, whose image {device.image} lies on {memory}" if memory else ""
    return ""


def _devices_below(path: Path, depth: int) -> tuple[BlockDevice, ...]:
    existing = mounts.existing_parent(path)
    number = existing.stat().st_dev
    entry = _entry(number)
    if entry is not None:
        return (_device(entry, depth),)
    # Btrfs and others with several devices have numbers of their own, and the mount's source is one of the devices.
    source = mounts.mount_of(existing).source.partition("[")[0].partition(":")[0]
    try:
        entry = _entry(Path(source).stat().st_rdev)
    except OSError:
        entry = None
    if entry is None:
        return ()
    return tuple(_device(member, depth) for member in _btrfs_members(entry) or [entry])


def _entry(number: int) -> Path | None:
    """A device's directory in /sys; None if there is none."""
    link = _SYS / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    try:
        return link.resolve(strict=True)
    except OSError:
        return None


def _btrfs_members(entry: Path) -> list[Path]:
    """All devices of the Btrfs filesystem that has this one; empty if none has."""
    for devices in _SYS.glob("fs/btrfs/*/devices"):
        if (devices / entry.name).exists():
            return [member.resolve() for member in sorted(devices.iterdir())]
    return []


def _device(entry: Path, depth: int) -> BlockDevice:
    name, kind = entry.name, _kind(entry)
    if depth >= _DEEPEST:
        return BlockDevice(name, "unknown")
    if kind == "partition":
        return BlockDevice(name, kind, (_device(entry.parent, depth + 1),))
    if kind == "loop":
        return _loop(entry, depth)
    slaves = entry / "slaves"
    members = sorted(slaves.iterdir()) if slaves.is_dir() else []
    return BlockDevice(name, kind, tuple(_device(member.resolve(), depth + 1) for member in members))


def _kind(entry: Path) -> DeviceKind:
    if (entry / "partition").exists():
        return "partition"
    for kind in ("loop", "dm", "md"):
        if (entry / kind).is_dir():
            return kind
    letters = entry.name.rstrip("0123456789")
    for prefix, named in _BY_NAME:
        if letters == prefix:
            return named
    if not (entry / "device").exists():
        return "unknown"
    return "network" if _is_remote(entry) else "disk"


def _is_remote(entry: Path) -> bool:
    """Whether a disk is a server's: iSCSI, Fibre Channel, NVMe over fabrics."""
    if any(part.startswith(("session", "rport-")) for part in entry.parts):
        return True
    device = entry / "device"
    for transport in (device / "transport", *device.glob("nvme*/transport")):
        with suppress(OSError):
            if transport.read_text().strip() in {"tcp", "rdma", "fc"}:
                return True
    return False


def _loop(entry: Path, depth: int) -> BlockDevice:
    try:
        image = (entry / "loop" / "backing_file").read_text().strip()
        direct_io = (entry / "loop" / "dio").read_text().strip() == "1"
    except OSError:
        return BlockDevice(entry.name, "unknown")
    if not Path(image).is_file():  # removed, or the path of another mount namespace
        return BlockDevice(entry.name, "loop", (), image, "unknown", direct_io)
    filesystem = mounts.mount_of(Path(image)).filesystem
    return BlockDevice(entry.name, "loop", _devices_below(Path(image), depth + 1), image, filesystem, direct_io)
