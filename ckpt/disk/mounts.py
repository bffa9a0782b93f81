"""The filesystem that holds a path: its type, and whether its caches can be observed."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ckpt.disk.filesystems import Filesystem, Kind, facts


@dataclass(frozen=True, slots=True)
class Mount:
    """The filesystem that holds a path; all `unknown` if findmnt fails."""

    filesystem: str
    source: str
    options: str
    mount_point: str

    @property
    def facts(self) -> Filesystem:
        """What is known of filesystems of its type."""
        return facts("fuse.mfs" if self.source.startswith("mfs#") else self.filesystem)  # MooseFS is `fuse` here

    @property
    def in_memory(self) -> bool:
        """Whether its files are in memory only."""
        return self.facts.kind is Kind.MEMORY

    @property
    def upper(self) -> str:
        """The directory of an overlay's new files, as whoever mounted it sees it; empty if there is none."""
        match = re.search(r"(?:^|,)upperdir=([^,]+)", self.options) if self.filesystem == "overlay" else None
        return match[1] if match else ""


def existing_parent(path: Path) -> Path:
    """Return the path itself, or the nearest directory above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def mount_of(path: Path) -> Mount:
    """Find the mount that holds a path, or its nearest existing parent."""
    command = ["findmnt", "--json", "--target", str(existing_parent(path))]
    command += ["--output", "FSTYPE,SOURCE,OPTIONS,TARGET"]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
        mount = json.loads(answer)["filesystems"][0]
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return Mount("unknown", "unknown", "unknown", "unknown")
    return Mount(mount["fstype"], mount["source"], mount["options"], mount["target"])


def cache_caveat(mount: Mount) -> str:
    """Why a cold load can't be proven on this filesystem, and what to do about it; empty if it can."""
    if mount.facts.other_caches:
        return (
            f"{mount.filesystem} caches outside this kernel's page cache (in {mount.facts.other_caches}), where nobody "
            "can look: read on another node than wrote, read with O_DIRECT, or take a state of over three times the "
            "memory"
        )
    return ""
