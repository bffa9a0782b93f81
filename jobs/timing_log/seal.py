"""The user block before an HDF5 file's content: a SHA-256 of that content, and a note of the job's progress."""

from __future__ import annotations

import hashlib

from jobs.errors import TimingLogError
from jobs.timing_log import progress
from jobs.timing_log.progress import Progress

_SEAL = "ckpt-study sha256"
_USER_BLOCK_BYTES = 512
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def sealed(image: bytes, note: bytes = b"") -> bytes:
    """An HDF5 file's bytes behind a user block with their SHA-256.

    HDF5 ends the process on many a damaged file, so damage has to be seen before it is opened. Readers skip the block.

    Args:
        image: HDF5's bytes.
        note: a line for the block, with a digest of its own; left out if it doesn't fit.
    """
    return _block(image, note) + image


def _block(image: bytes | memoryview, note: bytes) -> bytes:
    seal = f"{_SEAL} {hashlib.sha256(image).hexdigest()}\n".encode()
    lines = seal + note if len(seal) + len(note) <= _USER_BLOCK_BYTES else seal
    return lines.ljust(_USER_BLOCK_BYTES, b"\0")


def check_seal(content: bytes, where: str) -> None:
    """Make sure that a file is as it was written, before HDF5 looks at it. Files that never had a seal pass.

    Args:
        content: of the whole file.
        where: the file, for messages.

    Raises:
        TimingLogError: if it was damaged.
    """
    if content.startswith(_SEAL.encode()):
        note, noted = note_of(content)
        whole = content.startswith(_block(memoryview(content)[_USER_BLOCK_BYTES:], note))
        if not whole or (note and not noted):
            raise TimingLogError(f"{where} is damaged: its content is not what was written (SHA-256 differs)")
    elif content[_USER_BLOCK_BYTES:].startswith(_HDF5_SIGNATURE):
        raise TimingLogError(f"{where} is damaged: the seal before its content is gone")


def note_of(content: bytes) -> tuple[bytes, Progress | None]:
    """The note in the block before a file's content, and the progress in it."""
    note = content[:_USER_BLOCK_BYTES].partition(b"\n")[2].rstrip(b"\0")
    return note, progress.of_note(note)
