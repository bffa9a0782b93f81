"""Filesystems on devices of this machine: how they lay out files, and the devices with their queues."""

from __future__ import annotations

import array
import fcntl
import json
import os
import platform
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ckpt.disk import block_devices, filesystems
from ckpt.disk.block_devices import BlockDevice
from ckpt.disk.filesystems import Kind
from ckpt.disk.mounts import Mount, mount_of
from jobs.node.known import UnknownFactError, ask, attribute, known, text
from jobs.node.storage.extents import extents_of
from jobs.node.storage.listed import listed

_SYS = Path("/sys")

_QUEUE = ("scheduler", "rotational", "write_cache", "fua")
"""Of a disk: its scheduler, 1 if it rotates, `write back` if it has a cache, 1 if a write can pass that (FUA)."""

_NO_COPY_ON_WRITE, _COMPRESS = 0x00800000, 0x00000004
_GET_FLAGS = 0x80086601


def kernel_version(_mount: Mount, _directory: Path) -> str:
    """The version of a filesystem that is part of the kernel."""
    return f"Linux {platform.release()}"


def no_servers(_mount: Mount, _directory: Path) -> str:
    """Where the servers of a local filesystem are."""
    return "none: its files are on this machine"


def devices(mount: Mount, directory: Path) -> str:
    """The devices below a directory, down to the disks, as JSON; of an overlay, those of its new files.

    Where files lie in memory without a device, `memory` and what makes them do so.

    Raises:
        UnknownFactError: if none is known.
    """
    below = block_devices.devices_below(_upper(mount) if mount.filesystem == "overlay" else directory)
    if not below and (memory := block_devices.lies_in_memory(directory)):
        return f"memory: {memory}"
    if not below and filesystems.facts(mount.filesystem).kind is Kind.NETWORK:
        raise UnknownFactError("its devices are the servers'")
    if not below:
        raise UnknownFactError("no device of this machine is seen below it")
    return json.dumps([_with_queue(device) for device in below])


def _with_queue(device: BlockDevice) -> dict[str, Any]:
    facts = asdict(device) | {"below": [_with_queue(below) for below in device.below]}
    if device.kind != "loop":
        facts = {name: value for name, value in facts.items() if name not in {"image", "image_filesystem", "direct_io"}}
    entry = _SYS / "block" / device.name
    if (entry / "queue").is_dir():  # a partition's is its disk's
        facts |= {name: known(partial(_queue, entry, name)) for name in _QUEUE}
    if device.kind == "disk":
        facts["model"] = known(lambda: _model(entry))
        facts["size_bytes"] = known(lambda: 512 * int(text(entry / "size")))
    return facts


def _queue(entry: Path, name: str) -> str:
    value = text(entry / "queue" / name)
    chosen = re.search(r"\[(\S+)\]", value)  # of the schedulers that there are
    return chosen[1] if chosen else value


def _model(entry: Path) -> str:
    model = entry / "device" / "model"
    if model.is_file():
        return text(model)
    vendor = entry / "device" / "vendor"
    raise UnknownFactError(f"the disk has no model; its vendor is {text(vendor) if vendor.is_file() else 'unknown'}")


def btrfs_layout(mount: Mount, directory: Path) -> str:
    """The profiles, the number of devices, and what new files in a directory get: compression, copy on write."""
    facts = {}
    for filesystem in _SYS.glob("fs/btrfs/*-*"):
        members = {member.name for member in (filesystem / "devices").iterdir()}
        if members & {device.name for device in block_devices.devices_below(directory)}:
            facts = {kind: _profiles(filesystem / "allocation" / kind) for kind in ("data", "metadata")}
            facts |= {"devices": str(len(members)), "checksum": text(filesystem / "checksum").partition(" ")[0]}
    return listed(facts | {"compression": _compression(mount, directory)} | _flags(directory))


def _profiles(allocation: Path) -> str:
    return "+".join(sorted(entry.name for entry in allocation.iterdir() if entry.is_dir()))


def _compression(mount: Mount, directory: Path) -> str:
    """A directory's property comes before the mount's option."""
    try:
        return attribute(directory, "btrfs.compression")
    except UnknownFactError:
        option = re.search(r"(?:^|,)compress(?:-force)?=([^,]+)", mount.options)
        return option[1] if option else "none"


def _flags(path: Path) -> dict[str, str]:
    """What chattr has set."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
    except OSError:
        return {}
    finally:
        os.close(descriptor)
    shown = {"nocow": _NO_COPY_ON_WRITE, "compress": _COMPRESS}
    set_here = [name for name, flag in shown.items() if flags[0] & flag]
    return {"flags": "+".join(set_here)} if set_here else {}


def btrfs_written(_mount: Mount, file: Path) -> str:
    """How a written file is stored."""
    extents = extents_of(file)
    return listed({"extents": str(extents.count), "compressed": f"{extents.encoded_share:.0%}"} | _flags(file))


def written(_mount: Mount, file: Path) -> str:
    """In how many pieces a written file is stored."""
    return listed({"extents": str(extents_of(file).count)})


def xfs_layout(mount: Mount, _directory: Path) -> str:
    """What mkfs.xfs has chosen."""
    return xfs_facts(ask("xfs_info", mount.mount_point))


def xfs_facts(answer: str) -> str:
    """What matters here of xfs_info's answer.

    Raises:
        UnknownFactError: if it is none.
    """
    sections = re.split(r"^(?=\S)", answer, flags=re.MULTILINE)
    data = next((section for section in sections if section.startswith("data")), "")
    facts = {name: _value(name, data) for name in ("bsize", "sunit", "swidth")}
    facts |= {name: _value(name, answer) for name in ("agcount", "reflink", "crc")}
    if not all(facts[name] for name in ("bsize", "sunit", "swidth")):
        raise UnknownFactError("xfs_info answers in a form that is not known here")
    return listed({name: value for name, value in facts.items() if value})


def _value(name: str, text: str) -> str:
    match = re.search(rf"\b{name}=(\S+?),?(?=\s|$)", text)
    return match[1] if match else ""


def ext4_layout(mount: Mount, directory: Path) -> str:
    """The block size, and the stripe that ext4 aligns to: 0 if neither mkfs nor mount was given one."""
    option = re.search(r"(?:^|,)stripe=(\d+)", mount.options)
    return listed({"block_size": str(os.statvfs(directory).f_frsize), "stripe_blocks": option[1] if option else "0"})


def overlay_layout(mount: Mount, _directory: Path) -> str:
    """Where an overlay keeps new files."""
    upper = _upper(mount)
    below = mount_of(upper)
    return listed({"upperdir": str(upper), "upper_filesystem": below.filesystem, "upper_source": below.source})


def _upper(mount: Mount) -> Path:
    """The directory of an overlay's new files.

    Raises:
        UnknownFactError: if it has none, or it is of another mount namespace, as in a container.
    """
    if not mount.upper:
        raise UnknownFactError("the overlay has no upper directory, so nothing can be written to it")
    if not Path(mount.upper).is_dir():
        raise UnknownFactError(f"new files go to {mount.upper}, which is not visible here")
    return Path(mount.upper)
