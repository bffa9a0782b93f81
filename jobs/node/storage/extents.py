"""Where a file's data lie on its device: the kernel's FIEMAP, which needs no privileges."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from jobs.node.known import UnknownFactError

_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")
"""Start and length of what is asked for; flags, extents in the answer, room for extents, nothing."""
_EXTENT = struct.Struct("=QQQQQIIII")
"""In the file, on the device, length, nothing twice; flags, nothing three times."""
_AT_ONCE = 512
_LAST, _ENCODED = 0x1, 0x8
_MOST_EXTENTS = 100_000


@dataclass(frozen=True, slots=True)
class Extents:
    """How a file lies on its device.

    Attributes:
        count: its extents.
        encoded_share: the share of its bytes that the filesystem stores in another form: compressed, or encrypted.
    """

    count: int
    encoded_share: float


def extents_of(file: Path) -> Extents:
    """How a file's data are stored.

    Raises:
        UnknownFactError: if the filesystem doesn't say, or the file is in too many pieces.
    """
    count = encoded = mapped = position = 0
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count < _MOST_EXTENTS:
            answer = bytearray(_HEADER.pack(position, 2**64 - 1 - position, 0, 0, _AT_ONCE, 0))
            answer += bytes(_AT_ONCE * _EXTENT.size)
            fcntl.ioctl(descriptor, _FIEMAP, answer)
            filled = _HEADER.unpack_from(answer)[3]
            if not filled:
                return Extents(count, encoded / max(1, mapped))
            for number in range(filled):
                logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(answer, _HEADER.size + number * _EXTENT.size)
                count += 1
                mapped += length
                encoded += length if flags & _ENCODED else 0
                position = logical + length
                if flags & _LAST:
                    return Extents(count, encoded / max(1, mapped))
    except OSError as error:
        raise UnknownFactError(f"this filesystem does not show a file's extents: {error.strerror}") from None
    finally:
        os.close(descriptor)
    raise UnknownFactError(f"the file is in more than {_MOST_EXTENTS:,} pieces")
