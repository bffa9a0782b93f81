"""Converts parameter names to file names: no two collide, and none leads out of its directory.

Replacing dots by underscores, which is common, would give `a.b` and `a_b` one file.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote_from_bytes

_LONGEST_BYTES = 180
"""Longer names are cut and hashed: filesystems allow 255 bytes, and suffixes need room."""

_EMPTY = "%"
_HASH_MARK = "%~"


def to_filename(name: str) -> str:
    """Return the file name (without suffix) for a parameter's name.

    Letters, digits, `_`, `-` and inner dots stay; other bytes of the UTF-8 form become `%XX`. Of a name that is
    too long, the beginning is kept and a SHA-256 added: since that can't be reversed, strategies store the full names
    in `metadata.json`.
    """
    if not name:
        return _EMPTY
    encoded = quote_from_bytes(name.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]  # no hidden files, no `.` and no `..`
    if len(encoded) > _LONGEST_BYTES:
        digest = hashlib.sha256(encoded.encode()).hexdigest()
        return encoded[: _LONGEST_BYTES - len(_HASH_MARK) - len(digest)] + _HASH_MARK + digest
    return encoded


def of_rank(filename: str, rank: int, count: int) -> str:
    """Return the name of one rank's file or directory among several: `state.h5` becomes `state-00000-of-00002.h5`."""
    stem, dot, suffix = filename.partition(".")
    return filename if count == 1 else f"{stem}-{rank:05d}-of-{count:05d}{dot}{suffix}"
