"""The filesystem that holds a path: its kind, its room, and whether its caches can be seen from here."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})

_OWN_CACHES = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "smb3", "wekafs",
    "zfs",
})  # fmt: skip
"""Filesystems whose data may lie in a cache that isn't the kernel's page cache."""


@dataclass(frozen=True, slots=True)
class Mount:
    """The filesystem that holds a path; `unknown` where findmnt can't tell."""

    filesystem: str
    source: str
    options: str
    mount_point: str

    @property
    def in_memory(self) -> bool:
        """Whether its files are memory: no disk to measure."""
        return self.filesystem in MEMORY_FILESYSTEMS


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def mount_of(path: Path) -> Mount:
    """The mount that holds a path (or its nearest existing parent)."""
    command = ["findmnt", "--json", "--target", str(existing_parent(path))]
    command += ["--output", "FSTYPE,SOURCE,OPTIONS,TARGET"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
        found = json.loads(answer)["filesystems"][0]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return Mount("unknown", "unknown", "unknown", "unknown")
    return Mount(found["fstype"], found["source"], found["options"], found["target"])


def free_bytes(path: Path) -> int:
    """What an unprivileged user may still write there."""
    return shutil.disk_usage(existing_parent(path)).free


def cache_caveat(mount: Mount) -> str:
    """Why a cold load can't be proven on this filesystem, and what to do; empty where it can."""
    if mount.filesystem in _OWN_CACHES or mount.filesystem.startswith("fuse"):
        return (
            f"{mount.filesystem} caches outside this kernel's page cache (in its client or its servers), where nobody "
            "can look: read on another node than wrote, read with O_DIRECT, or take a state of over three times the "
            "memory"
        )
    return ""
