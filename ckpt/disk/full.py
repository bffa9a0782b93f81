"""Whether a write failed because a filesystem is full, or a quota is used up, whatever a library made of the error."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckpt.disk import listing
from ckpt.disk.room import room_of, size

_REASONS = (errno.ENOSPC, errno.EDQUOT)

_PROBE = bytes(2**20)
"""More than what a library may have failed to write after its last success."""


def named(text: str, error: BaseException, directory: Path) -> str:
    """Return an error's message, which names a full filesystem or a used-up quota if that was the reason.

    If no error names the reason, a little is written into the directory, and to its largest file, since a filesystem on
    several servers may have room on others. So nothing in the directory may be needed any more.
    """
    reason = _number_of(error) or _tried(directory)
    if not reason or os.strerror(reason) in text:
        return text
    return f"{os.strerror(reason)}{_left(directory)}: {text}"


def _number_of(error: BaseException | None) -> int:
    """The reason that an error, or one that led to it, has as its number or in its text; 0 if there is none."""
    for link in _chain(error):
        for reason in _REASONS:
            if getattr(link, "errno", None) == reason or os.strerror(reason) in str(link):
                return reason
    return 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _tried(directory: Path) -> int:
    """The reason for which the filesystem refuses a little more data; 0 if it takes it, or refuses it otherwise."""
    probe = directory / f".probe-{secrets.token_hex(8)}"
    try:
        files = sorted(listing.files_below(directory), key=lambda entry: entry.stat(follow_symlinks=False).st_size)
        for path in [probe, *(Path(entry.path) for entry in files[-1:])]:
            with path.open("ab") as file:
                file.write(_PROBE)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _REASONS else 0
    finally:
        with suppress(OSError):
            probe.unlink()
    return 0


def _left(directory: Path) -> str:
    """What room is left: bytes may be free where the number of files is exhausted."""
    try:
        room = room_of(directory)
    except OSError:
        return ""
    files = "" if room.free_files is None else f" and {room.free_files:,} files"
    return "" if room.free_bytes is None else f", {size(room.free_bytes)}{files} free"
