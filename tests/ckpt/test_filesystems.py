"""The table of filesystems: what is known of each type, and that nothing is assumed of others."""

from __future__ import annotations

import pytest

from ckpt.disk import mounts
from ckpt.disk.filesystems import Kind, facts
from ckpt.disk.mounts import Mount


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ext4", Kind.LOCAL), ("xfs", Kind.LOCAL), ("btrfs", Kind.LOCAL), ("zfs", Kind.LOCAL), ("nfs4", Kind.NETWORK),
        ("lustre", Kind.NETWORK), ("pvfs2", Kind.NETWORK), ("virtiofs", Kind.NETWORK), ("gfs2", Kind.NETWORK),
        ("fuse.glusterfs", Kind.NETWORK), ("overlay", Kind.STACKED), ("tmpfs", Kind.MEMORY), ("ramfs", Kind.MEMORY),
        ("fuse", Kind.PROGRAM), ("fuse.something", Kind.PROGRAM), ("fuseblk", Kind.PROGRAM),
        ("newfs", Kind.UNKNOWN), ("unknown", Kind.UNKNOWN), ("", Kind.UNKNOWN),
    ],
)  # fmt: skip
def test_kinds(name: str, kind: Kind) -> None:
    """Each type has its kind; of a type that the table doesn't have, nothing is assumed."""
    assert facts(name).kind is kind
    assert facts(name).name == name


def test_an_unknown_type_promises_nothing() -> None:
    """Neither durability, nor locks, nor that nodes share it, follows from a type that nobody knows."""
    newfs = facts("newfs")
    assert (newfs.fsync, newfs.locks, newfs.shared) == ("unknown", "unknown", False)


@pytest.mark.parametrize("name", ["nfs4", "fuse.glusterfs", "pvfs2", "zfs", "virtiofs", "fuse"])
def test_caches_elsewhere(name: str) -> None:
    """Filesystems with caches outside the page cache are said to have them, and what to do about it."""
    assert f"{name} caches outside" in mounts.cache_caveat(Mount(name, "source", "rw", "/mnt"))
    assert mounts.cache_caveat(Mount("ext4", "source", "rw", "/mnt")) == ""


def test_moosefs_is_known_by_its_source() -> None:
    """It calls its type plain `fuse`."""
    assert Mount("fuse", "mfs#master:9421", "rw", "/mnt").facts.name == "fuse.mfs"
    assert Mount("fuse", "other", "rw", "/mnt").facts.kind is Kind.PROGRAM
