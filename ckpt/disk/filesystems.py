"""What is known of each type of filesystem. Of a type that isn't in the table nothing is assumed.

A fact that is the mount's, and not the type's, is not here: options weaken a filesystem (`weakening_options`), and the
devices below it are `block_devices`' matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

Locks = Literal["always", "with flock", "unknown"]


FILE_MIB = 256
"""The size of a file where a state is written into several, so that several servers take part in it."""


class Kind(Enum):
    """Where a filesystem keeps its files, as the kernel of this machine sees it."""

    LOCAL = "local"
    """On block devices of this machine."""
    NETWORK = "network"
    """On servers, or on disks that several machines share."""
    PROGRAM = "FUSE"
    """Wherever a program of this machine keeps them (a FUSE filesystem that the table doesn't have)."""
    STACKED = "stacked"
    """On other filesystems of this machine."""
    MEMORY = "memory"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BestIo:
    """How a filesystem's files are written and read fastest, by measurement.

    Attributes:
        direct_writes, direct_reads: past the page cache; else through it.
        preallocate: with their blocks reserved.
        several_files: in files of `FILE_MIB` rather than in a single one, which would lie on one server.
    """

    direct_writes: bool
    direct_reads: bool
    preallocate: bool = False
    several_files: bool = False


@dataclass(frozen=True, slots=True)
class Filesystem:
    """The facts about one type of filesystem.

    Attributes:
        name: the kernel's name of the type, as in /proc/mounts.
        kind: where it keeps its files.
        fsync: what has happened when fsync has returned.
        other_caches: whose caches, besides this kernel's page cache, may hold its files; empty if there are none.
        shared: whether it shows the same files on all nodes that mount it.
        locks: whether flock(2) locks hold for all who may write: always, with the mount option `flock`, or unknown.
        ignores_direct_io: whether it takes `O_DIRECT` and may go through the page cache all the same.
        room: what the free space that it reports leaves out; empty if nothing is known.
        weakening_options: mount options with which fsync guarantees less than `fsync` says.
        best_io: how its files are written and read fastest; None where that has to be tried.
    """

    name: str
    kind: Kind = Kind.UNKNOWN
    fsync: str = "unknown"
    other_caches: str = ""
    shared: bool = False
    locks: Locks = "unknown"
    ignores_direct_io: bool = False
    room: str = ""
    weakening_options: frozenset[str] = frozenset()
    best_io: BestIo | None = None


_ON_DEVICE = "data and metadata are on the device, and its write cache is flushed"
_NO_BARRIERS = frozenset({"nobarrier", "barrier=0", "fsync_mode=nobarrier"})
_LOCAL = Filesystem("", Kind.LOCAL, _ON_DEVICE, locks="always", weakening_options=_NO_BARRIERS)
_NETWORK = Filesystem("", Kind.NETWORK, other_caches="its client or its servers", shared=True)
_STACKED = Filesystem("", Kind.STACKED, "what the filesystem below does", locks="always")
_MEMORY = Filesystem("", Kind.MEMORY, "nothing: its files are in memory", locks="always")
_PROGRAM = Filesystem("", Kind.PROGRAM, other_caches="its program or its servers")

_LOCAL_TYPES = ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "reiserfs", "xfs")
_MEMORY_TYPES = ("devtmpfs", "hugetlbfs", "ramfs", "tmpfs")

_SERVERS_STORED = "the servers have answered that the data are on their stable storage"
_UPLOADED = "the data are uploaded; the object store decides when they are on its disks"
_PASSED_ON = "the server has answered; whether it syncs is its own matter"

_NETWORK_FSYNC = {
    "9p": _PASSED_ON,
    "afs": "the server has stored the data; it need not have synced them",
    "beegfs": "the storage servers have synced, unless `tuneRemoteFSync = false`",
    "ceph": "the disks of all replicas have the data",
    "cifs": "the server was asked to flush, unless mounted with `nostrictsync`; whether it syncs is its own matter",
    "coda": "unknown",
    "fuse.ceph": "the disks of all replicas have the data",
    "fuse.ceph-fuse": "the disks of all replicas have the data",
    "fuse.daos": "the data are in the persistent memory or on the disks of the servers",
    "fuse.dfuse": "the data are in the persistent memory or on the disks of the servers",
    "fuse.gcsfuse": _UPLOADED,
    "fuse.gfarm2fs": "the file servers have the data; they need not have synced them",
    "fuse.glusterfs": "the bricks have synced",
    "fuse.juicefs": f"{_UPLOADED}; with `--writeback` they are in the local cache only",
    "fuse.lizardfs": "the chunkservers have the data; they sync only with `HDD_FSYNC_BEFORE_CLOSE = 1`",
    "fuse.mfs": "the chunkservers have the data; they sync only with `HDD_FSYNC_BEFORE_CLOSE = 1`",
    "fuse.mount-s3": _UPLOADED,
    "fuse.rclone": "nothing is sure: rclone uploads a file when it is closed, or seconds later (`--vfs-write-back`)",
    "fuse.s3fs": _UPLOADED,
    "fuse.seaweedfs": "the volume servers have the data; they sync only with `-fsync`",
    "fuse.sshfs": "the server has synced, if it is OpenSSH's",
    "gfs2": _ON_DEVICE,
    "gpfs": _SERVERS_STORED,
    "lustre": "the object servers have committed the data to their disks",
    "nfs": f"{_SERVERS_STORED}, unless they export with `async`",
    "nfs4": f"{_SERVERS_STORED}, unless they export with `async`",
    "ocfs2": _ON_DEVICE,
    "orangefs": _PASSED_ON,
    "panfs": _SERVERS_STORED,
    "pvfs2": _PASSED_ON,
    "smb3": "the server was asked to flush, unless mounted with `nostrictsync`; whether it syncs is its own matter",
    "virtiofs": "the host's filesystem has synced",
    "wekafs": _SERVERS_STORED,
}
_TRASH = "removed files take room for a day, unless `mfssettrashtime 0` was set; and copies count by the goal"
_OF_OBJECTS = "what the object store behind it takes isn't known"
_ROOM = {
    "beegfs": "of all storage targets together: a file must fit on those that it is striped over",
    "fuse.gcsfuse": _OF_OBJECTS,
    "fuse.glusterfs": "of all bricks together: unless it is sharded, a file must fit on one brick",
    "fuse.juicefs": _OF_OBJECTS,
    "fuse.lizardfs": _TRASH,
    "fuse.mfs": _TRASH,
    "fuse.mount-s3": _OF_OBJECTS,
    "fuse.rclone": _OF_OBJECTS,
    "fuse.s3fs": _OF_OBJECTS,
    "lustre": "of all OSTs together: a file must fit on those that it is striped over",
}
_LOCKS: dict[str, Locks] = {"ceph": "always", "gfs2": "always", "ocfs2": "always", "lustre": "with flock"}

_DIRECT = BestIo(direct_writes=True, direct_reads=True, preallocate=True)
_CACHED = BestIo(direct_writes=False, direct_reads=False)
_WRITTEN_CACHED = BestIo(direct_writes=False, direct_reads=True)
_BEST_IO = {
    "btrfs": _CACHED,  # it computes checksums in the page cache, and compresses nothing that is preallocated
    "ext2": _DIRECT,
    "ext3": _DIRECT,
    "ext4": _DIRECT,
    "fuse.ceph": _WRITTEN_CACHED,  # its program makes every direct request a synchronous write to the object stores
    "fuse.ceph-fuse": _WRITTEN_CACHED,
    # Direct I/O was 10 % faster than through the cache where the bricks' disk wrote 2 GB/s, and 12 to 31 % slower where
    # it wrote 0.6 GB/s. A file lies on one brick.
    "fuse.glusterfs": BestIo(direct_writes=False, direct_reads=False, several_files=True),
    "xfs": _DIRECT,
}

_IGNORING_DIRECT_IO = {"btrfs"}
"""Since Linux 6.14, where files have checksums."""

_TABLE: dict[str, Filesystem] = {
    **{
        name: replace(_LOCAL, name=name, best_io=_BEST_IO.get(name), ignores_direct_io=name in _IGNORING_DIRECT_IO)
        for name in _LOCAL_TYPES
    },
    "zfs": replace(_LOCAL, name="zfs", fsync=f"{_ON_DEVICE}, unless `sync=disabled`", other_caches="its ARC"),
    **{name: replace(_MEMORY, name=name, best_io=_CACHED) for name in _MEMORY_TYPES},
    "overlay": replace(_STACKED, name="overlay", weakening_options=frozenset({"volatile"})),
    "ecryptfs": replace(_STACKED, name="ecryptfs", other_caches="the filesystem below", locks="unknown"),
    **{
        name: replace(_STACKED, name=name, other_caches="its program and the filesystem below", locks="unknown")
        for name in ("fuse.bindfs", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.mergerfs", "fuse.unionfs")
    },
    **{
        name: replace(
            _NETWORK,
            name=name,
            fsync=fsync,
            locks=_LOCKS.get(name, "unknown"),
            room=_ROOM.get(name, ""),
            best_io=_BEST_IO.get(name),
        )
        for name, fsync in _NETWORK_FSYNC.items()
    },
}


def facts(name: str) -> Filesystem:
    """What is known of a type of filesystem, by the kernel's name; `Kind.UNKNOWN` if it isn't in the table."""
    known = _TABLE.get(name)
    if known is not None:
        return known
    return replace(_PROGRAM, name=name) if name.startswith("fuse") else Filesystem(name)
