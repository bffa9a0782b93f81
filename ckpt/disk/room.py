"""How much more a directory's filesystem takes, as far as it can be known."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt.disk import mounts
from ckpt.disk.mounts import Mount

_MOST = 2**62
"""Filesystems that don't count answer with the largest number that fits, with or without a sign."""

_BRICKS = re.compile(r"^du_stats\[\d+\]\.avail_space = (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Room:
    """The room in a directory's filesystem; None for what it doesn't say.

    Attributes:
        capacity_bytes: of the filesystem.
        free_bytes: that a user without privileges may still write; a quota may allow less.
        free_files: that may still be made.
        bricks: the free bytes of each brick of GlusterFS that files are distributed to whole, as its client last saw
            them; empty if that isn't known, or files are cut into shards.
    """

    capacity_bytes: int | None
    free_bytes: int | None
    free_files: int | None
    bricks: tuple[int, ...] = ()


def room_of(path: Path, mount: Mount | None = None) -> Room:
    """Ask for the room at a path, or where its nearest existing parent lies; on its mount, if that is known.

    Raises:
        OSError: if the filesystem doesn't answer.
    """
    existing = mounts.existing_parent(path)
    status = os.statvfs(existing)
    counts_files = status.f_files > 0 and 0 <= status.f_favail < _MOST
    return Room(
        capacity_bytes=status.f_blocks * status.f_frsize if status.f_blocks > 0 else None,
        free_bytes=_free_bytes(status),
        free_files=status.f_favail if counts_files else None,
        bricks=_bricks(mount or mounts.mount_of(existing)),
    )


def free_bytes_of(path: Path) -> int | None:
    """Ask for the free bytes alone, as `Room` has them: a system call, and no program that a training loop waits for.

    Raises:
        OSError: if the filesystem doesn't answer.
    """
    return _free_bytes(os.statvfs(mounts.existing_parent(path)))


def _free_bytes(status: os.statvfs_result) -> int | None:
    return max(0, status.f_bavail) * status.f_frsize if status.f_blocks > 0 else None


def words(room: Room, mount: Mount) -> str:
    """What is free, with what that number leaves out."""
    free = "free space unknown" if room.free_bytes is None else f"{size(room.free_bytes)} free"
    if len(room.bricks) > 1:
        low, high = min(room.bricks), max(room.bricks)
        fit = f"a file must fit on one of {len(room.bricks)} bricks, which have {size(low)} to {size(high)}"
        return f"{free} on all bricks together, and {fit}"
    return f"{free}, but {mount.facts.room}" if mount.facts.room else free


def size(size_bytes: int) -> str:
    """A size in words, so that little is not rounded up to much: `585 MB`, `1.4 GB`."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.0f} MB"


def _bricks(mount: Mount) -> tuple[int, ...]:
    """Ask GlusterFS' client, which sees the bricks that this kernel doesn't."""
    if mount.filesystem != "fuse.glusterfs":
        return ()
    with suppress(OSError):
        graph = Path(mount.mount_point) / ".meta" / "graphs" / "active"
        parts = [part.name for part in graph.iterdir()]
        if not any(name.endswith("-shard") for name in parts):
            texts = [(graph / name / "private").read_text() for name in parts if name.endswith("-dht")]
            return tuple(int(free) for text in texts for free in _BRICKS.findall(text))
    return ()
