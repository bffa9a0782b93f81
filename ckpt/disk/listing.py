"""Lists, counts and measures the files below a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SMALL_FILE_BYTES = 2**20
"""Files under 1 MiB count as small: parallel filesystems handle them badly."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The files of a checkpoint on disk."""

    file_count: int
    apparent_bytes: int
    allocated_bytes: int
    small_file_count: int
    largest_file_bytes: int
    directory_count: int
    """Includes the checkpoint's own."""


def files_below(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every regular file below a directory, depth first; links are not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield entry


def inventory(directory: Path) -> Inventory:
    """Count and measure the files below a directory, or one file."""
    directories = sum(1 for _ in os.walk(directory))
    count = apparent = allocated = small = largest = 0
    entries = files_below(directory) if directory.is_dir() else [directory]
    for status in (entry.stat(follow_symlinks=False) for entry in entries):
        count += 1
        apparent += status.st_size
        allocated += status.st_blocks * 512  # by definition of st_blocks
        small += status.st_size < SMALL_FILE_BYTES
        largest = max(largest, status.st_size)
    return Inventory(count, apparent, allocated, small, largest, directories)
