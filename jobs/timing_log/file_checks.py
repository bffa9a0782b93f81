"""Make sure of a file, before HDF5 opens it, that it is a regular file, not too large, and that its texts end.

The size and kind of everything in it is bounded: see `objects`.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import TimingLogError


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a kind of file holds at the most."""

    rows: int
    """Of a table."""
    text_bytes: int
    """Of one text."""
    packed: bool
    """Whether columns may lie in chunks that are shuffled and deflated."""


LOG = Bounds(rows=4_000_000, text_bytes=1 << 16, packed=False)
"""A timing log: 67 trials of 10,000 ranks, or 1000 steps of a training loop of 4000."""

MERGED = Bounds(rows=16_000_000, text_bytes=1 << 20, packed=True)
"""A merged file: 160,000 logs of 100 samples, or 1000 logs of a training loop of 16 ranks."""

LARGEST_FILE_BYTES = 1 << 30
FILE_OPERATIONS = 8
"""System calls of `read_file`: open, status (3), position, content, its end, close."""
_COLLECTION = b"GCOL\x01\0\0\0"
"""How a collection of texts begins, with its version; no text of ours holds a NUL."""
_COLLECTION_HEADER_BYTES = _OBJECT_HEADER_BYTES = 16
_OBJECT_HEADER = struct.Struct("<H6xQ")
"""A text's number in its collection, 0 for free space; its size in bytes."""


def read_file(path: Path) -> bytes:
    """A file's content, once: another job may put a new log under the name at any time.

    Raises:
        TimingLogError: if it is no regular file, or too large for one of ours.
        OSError: if it is a directory, or can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe doesn't wait for its other end
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # a descriptor, no path; a directory is refused
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TimingLogError(f"{path} is no regular file: expected a timing log or a merged file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise TimingLogError(
                f"{path} has {status.st_size:,} bytes, and {LARGEST_FILE_BYTES:,} are the most that are read of a log "
                "or a merged file: is it one?"
            )
        return file.read()


def check_texts(content: bytes, where: str, bounds: Bounds) -> None:
    """Make sure that HDF5 can walk through a file's texts: HDF5 2.0 walks for ever where one says it takes no room.

    Args:
        content: of the whole file.
        where: the file, for messages.
        bounds: of that kind of file.

    Raises:
        TimingLogError: if it can't, or one is too long for ours.
    """
    place = content.find(_COLLECTION)
    while place >= 0:
        _check_collection(content, place, where, bounds)
        place = content.find(_COLLECTION, place + len(_COLLECTION))


def _check_collection(content: bytes, start: int, where: str, bounds: Bounds) -> None:
    """Walk through a collection of texts as HDF5 does."""
    end = start + int.from_bytes(content[start + 8 : start + 16], "little")
    place = start + _COLLECTION_HEADER_BYTES
    while place + _OBJECT_HEADER_BYTES <= end <= len(content):
        number, size = _OBJECT_HEADER.unpack_from(content, place)
        room = size if number == 0 else _OBJECT_HEADER_BYTES + -(-size // 8) * 8
        if room < _OBJECT_HEADER_BYTES or place + room > end:
            break
        if number and size > bounds.text_bytes:
            raise TimingLogError(f"{where} holds a text of {size:,} bytes, and ours have at most {bounds.text_bytes:,}")
        place += room
    else:
        if place <= end <= len(content):
            return
    raise TimingLogError(f"{where} is damaged: its texts at byte {start} don't end where they should")
