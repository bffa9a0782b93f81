"""Writes what surrounds a tensor's bytes in a `torch.save` file, which is an uncompressed zip archive.

    data.pkl, .format_version, .storage_alignment, byteorder, version    how to rebuild the tensor
    data/0                                                               its bytes, aligned by padding before them
    the zip's directory

The bytes get the CRC-32 0, as `torch.serialization.set_crc32_options(False)` has it: PyTorch doesn't compare it, and
computing it took longer than writing.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch

_FOLDER = "archive/"
_UTF8_NAMES = 0x0800
_PADDING_ID = b"FB"
"""The extra field by which PyTorch pads a file's header."""

_ZIP64_ID = 1
_LARGEST = 0xFFFFFFFF
"""Sizes from here on need the fields of 64 bits."""


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive has before and after the bytes of its tensor."""

    head: bytes
    tail: bytes


@lru_cache(1024)  # layers have tensors of the same shapes
def around(shape: tuple[int, ...], dtype: torch.dtype, alignment: int) -> Archive:
    """Return the archive of a contiguous tensor on the CPU.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        alignment: the head's length is a multiple of it.
    """
    size_bytes = torch.Size(shape).numel() * dtype.itemsize
    head, directory = bytearray(), bytearray()
    records = {
        "data.pkl": _pickled(shape, dtype),
        ".format_version": b"1",
        ".storage_alignment": str(alignment).encode(),
        "byteorder": sys.byteorder.encode(),
        "version": b"3\n",
    }
    for name, content in records.items():
        crc = zlib.crc32(content)
        directory += _directory_entry(name, crc, len(content), len(head))
        head += _header(name, crc, len(content)) + content
    directory += _directory_entry("data/0", 0, size_bytes, len(head))
    unpadded = len(_header("data/0", 0, size_bytes, padding=b""))
    padding = _padding(-(len(head) + unpadded) % alignment, alignment)
    head += _header("data/0", 0, size_bytes, padding=padding)
    return Archive(bytes(head), bytes(directory) + _end(len(records) + 1, len(directory), len(head) + size_bytes))


def saved(value: Any) -> bytes:
    """Return a whole archive of anything else, as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _pickled(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """Pickle a contiguous tensor as `torch.save` does, without its bytes."""
    empty: Any = torch.empty(0, dtype=dtype)
    rebuild, (storage, _, _, _, *others) = empty.__reduce_ex__(2)
    elements = torch.Size(shape).numel()
    name: tuple[Any, ...]
    if isinstance(storage, torch.storage.TypedStorage):
        kind = cast("Any", storage)._pickle_storage_type()  # noqa: SLF001  # what torch.save calls
        name = ("storage", getattr(torch, kind), "0", "cpu", elements)
    else:  # of the newer dtypes
        name = ("storage", torch.UntypedStorage, "0", "cpu", elements * dtype.itemsize)
    stride = tuple(torch.empty(shape, dtype=dtype, device="meta").stride())

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return rebuild, (storage, 0, tuple(shape), stride, *others)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return name if value is storage else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(Tensor())
    return buffer.getvalue()


def _header(name: str, crc: int, size_bytes: int, padding: bytes = b"") -> bytes:
    path = (_FOLDER + name).encode()
    extra = _zip64(size_bytes, size_bytes) + padding
    return struct.pack("<IHHHIIIIHH", 0x04034B50, *_common(crc, size_bytes), len(path), len(extra)) + path + extra


def _directory_entry(name: str, crc: int, size_bytes: int, offset: int) -> bytes:
    path = (_FOLDER + name).encode()
    extra = _zip64(size_bytes, size_bytes)
    lengths = len(path), len(extra), 0, 0, 0, 0
    fields = struct.pack("<IHHHHIIIIHHHHHII", 0x02014B50, 0, *_common(crc, size_bytes), *lengths, offset)
    return fields + path + extra


def _common(crc: int, size_bytes: int) -> tuple[int, ...]:
    """The fields of a file's header that the directory has, too: version, flags, method, time, CRC and two sizes."""
    shown = min(size_bytes, _LARGEST)
    return 45 if size_bytes >= _LARGEST else 0, _UTF8_NAMES, 0, 0, crc, shown, shown


def _zip64(*sizes: int) -> bytes:
    """The extra field with sizes of 64 bits; nothing if they fit into 32."""
    return struct.pack("<HHQQ", _ZIP64_ID, 16, *sizes) if max(sizes) >= _LARGEST else b""


def _padding(size_bytes: int, alignment: int) -> bytes:
    """An extra field of that length, or longer by the alignment if it would be too short for its own header."""
    if not size_bytes:
        return b""
    while size_bytes < 4:
        size_bytes += alignment
    return _PADDING_ID + struct.pack("<H", size_bytes - 4) + b"Z" * (size_bytes - 4)


def _end(files: int, directory_bytes: int, directory_start: int) -> bytes:
    """The end of an archive, with fields of 64 bits as PyTorch always writes them."""
    at = directory_start + directory_bytes
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, files, files, directory_bytes, directory_start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, at, 1)
    shown = min(directory_start, _LARGEST)
    return end64 + locator + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, files, files, directory_bytes, shown, 0)
