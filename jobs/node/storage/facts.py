"""The facts about what a target lies on; one that can't be had is `unknown` with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckpt.disk import block_devices, mounts
from ckpt.disk.filesystems import Kind, facts
from ckpt.disk.mounts import Mount
from ckpt.disk.room import room_of
from jobs.node.known import UnknownFactError, known
from jobs.node.storage import local, network, parallel

_Ask = Callable[[Mount, Path], str]


def _nothing(reason: str) -> _Ask:
    def ask(mount: Mount, _path: Path) -> str:
        raise UnknownFactError(reason.format(mount.filesystem))

    return ask


def _source(mount: Mount, _directory: Path) -> str:
    if not re.search(r"[:@#]|^//", mount.source):
        raise UnknownFactError(f"the mount's source, {mount.source}, names no server")
    return f"the {mount.filesystem} {mount.source}"


_NOT_ASKED = _nothing("{} is not among the filesystems that this package knows how to ask")
_SERVERS_OWN = _nothing("how the server stores files is not shown to {} clients")


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the facts about one type of filesystem come from: of a directory, and `written` of a file in it.

    `volume` names what its servers keep together, in the same words through whichever mount and on whichever node.
    """

    version: _Ask
    servers: _Ask
    layout: _Ask
    written: _Ask
    volume: _Ask = _source


_UNKNOWN = _Sources(_NOT_ASKED, _NOT_ASKED, _NOT_ASKED, _NOT_ASKED)
_LOCAL = _Sources(local.kernel_version, local.no_servers, _NOT_ASKED, local.written)
_CEPH = _Sources(
    network.ceph_version, network.ceph_servers, network.ceph_layout, network.ceph_written, network.ceph_volume
)
_NFS = _Sources(network.nfs_version, network.nfs_servers, _SERVERS_OWN, _SERVERS_OWN, network.nfs_volume)
_MOOSEFS = _Sources(
    network.moosefs_version, network.moosefs_servers, network.moosefs_layout, network.moosefs_written,
    network.moosefs_volume,
)  # fmt: skip
_JUICEFS = _Sources(
    network.juicefs_version, network.juicefs_servers, network.juicefs_layout, network.juicefs_layout,
    network.juicefs_volume,
)  # fmt: skip

_SOURCES = {
    "lustre": _Sources(
        parallel.lustre_version,
        parallel.lustre_servers,
        parallel.lustre_layout,
        parallel.lustre_written,
        parallel.lustre_volume,
    ),
    "gpfs": _Sources(
        parallel.gpfs_version, parallel.gpfs_servers, parallel.gpfs_layout, parallel.gpfs_written, parallel.gpfs_volume
    ),
    "beegfs": _Sources(
        parallel.beegfs_version, parallel.beegfs_servers, parallel.beegfs_layout, parallel.beegfs_layout
    ),
    "ceph": _CEPH,
    "fuse.ceph": _CEPH,
    "fuse.ceph-fuse": _CEPH,
    "fuse.glusterfs": _Sources(
        network.gluster_version,
        network.gluster_servers,
        network.gluster_layout,
        network.gluster_written,
        network.gluster_volume,
    ),
    "fuse.mfs": _MOOSEFS,
    "fuse.juicefs": _JUICEFS,
    "nfs": _NFS,
    "nfs4": _NFS,
    "btrfs": _Sources(local.kernel_version, local.no_servers, local.btrfs_layout, local.btrfs_written),
    "xfs": _Sources(local.kernel_version, local.no_servers, local.xfs_layout, local.written),
    "ext4": _Sources(local.kernel_version, local.no_servers, local.ext4_layout, local.written),
    "overlay": _Sources(local.kernel_version, local.no_servers, local.overlay_layout, local.written),
}

_BY_SOURCE = (("ceph-fuse", _CEPH), ("mfs#", _MOOSEFS), ("JuiceFS:", _JUICEFS))
"""Some FUSE filesystems are told apart by the mount's source only."""


def _sources(mount: Mount) -> _Sources:
    if mount.filesystem in _SOURCES:
        return _SOURCES[mount.filesystem]
    if mount.filesystem.startswith("fuse"):
        return next((sources for begin, sources in _BY_SOURCE if mount.source.startswith(begin)), _UNKNOWN)
    return _LOCAL if facts(mount.filesystem).kind in {Kind.LOCAL, Kind.MEMORY} else _UNKNOWN


def of_storage(directory: Path) -> dict[str, Any]:
    """What a directory lies on, or would lie on if it existed; little, since every process of a job asks for it."""
    existing = mounts.existing_parent(directory)
    mount = mounts.mount_of(existing)
    room, uncounted = room_of(existing, mount), "unknown (this filesystem doesn't count them)"
    return {
        "path": str(directory),
        **asdict(mount),
        "capacity_bytes": uncounted if room.capacity_bytes is None else room.capacity_bytes,
        "free_bytes": uncounted if room.free_bytes is None else room.free_bytes,
        "free_inodes": uncounted if room.free_files is None else room.free_files,
        "cache_caveat": mounts.cache_caveat(mount),
    }


def of_servers(directory: Path) -> dict[str, Any]:
    """What the filesystem's own tools say of a directory; the first process of a job asks for it, for all."""
    mount = mounts.mount_of(directory)
    sources = _sources(mount)
    return {
        "filesystem_version": known(lambda: sources.version(mount, directory)),
        "servers": known(lambda: sources.servers(mount, directory)),
        "layout": known(lambda: sources.layout(mount, directory)),
        "device": known(lambda: local.devices(mount, directory)),
        "volume": known(lambda: sources.volume(mount, directory)) if _is_remote(mount) else "",
    }


def _is_remote(mount: Mount) -> bool:
    return mount.facts.kind in {Kind.NETWORK, Kind.PROGRAM}


def storage_below(directory: Path) -> frozenset[str]:
    """What a directory's rates are those of, in the same words for all that lies on it: disks, or a servers' volume."""
    mount = mounts.mount_of(directory)
    if mount.upper and Path(mount.upper).is_dir():
        return storage_below(Path(mount.upper))
    below: set[str] = set()
    for device in block_devices.all_devices(block_devices.devices_below(directory)):
        if device.image and device.image_filesystem != "unknown" and not device.below:
            below |= storage_below(Path(device.image))
        elif not device.below:
            below.add(f"the {'disk' if device.kind == 'disk' else 'device'} {device.name}")
    if not below and _is_remote(mount):
        volume = str(known(lambda: _sources(mount).volume(mount, directory)))
        below |= {volume} if not volume.startswith("unknown") else set()
    return frozenset(below or {f"the {mount.filesystem} at {mount.mount_point}"})


def written_layout(checkpoint: Path) -> str:
    """How the largest file of a written checkpoint is laid out."""

    def layout() -> str:
        files = [file for file in checkpoint.rglob("*") if file.is_file()]
        if not files:
            raise UnknownFactError("the checkpoint has no file on this node")
        file = max(files, key=lambda file: file.stat().st_size)
        mount = mounts.mount_of(file)
        return _sources(mount).written(mount, file)

    return str(known(layout))
