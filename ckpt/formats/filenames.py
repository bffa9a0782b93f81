"""Parameter names as file names: no two collide, none leaves its directory, every one can be read back.

Replacing dots by underscores, as is often done, lets `a.b` and `a_b` share one file.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

_LONGEST_BYTES = 180
"""Longer names are cut and hashed: filesystems allow 255 bytes, and suffixes need room."""

_EMPTY = "%"
_HASH_MARK = "%~"


def to_filename(name: str) -> str:
    """The file name (without suffix) for a parameter of this name.

    Letters, digits, `_`, `-` and inner dots stay; other bytes of the UTF-8 form become `%XX`. A name too long
    for a file name keeps its beginning and gets a SHA-256: such a name can't be read back from the file name
    alone, so strategies keep the full names in `metadata.json`.
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


def from_filename(filename: str) -> str | None:
    """The parameter name that `to_filename` was given, or None where only the metadata knows it."""
    if filename == _EMPTY:
        return ""
    if re.search(f"{_HASH_MARK}[0-9a-f]{{64}}$", filename):
        return None
    return unquote_to_bytes(filename).decode("utf-8", "surrogatepass")
