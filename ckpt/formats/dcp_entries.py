"""Finds the bytes of tensors in DCP's files: in `torch.save` archives and in safetensors files, whoever wrote them."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from ckpt.errors import CheckpointError
from ckpt.formats import dcp_metadata, safetensors_files
from ckpt.formats.safetensors_header import Header

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

_LOCAL_HEADER_BYTES = 30
_LONGEST_PICKLE_BYTES = 2**20
"""What describes one tensor has a few hundred bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of a tensor in a file.

    Attributes:
        path: the file.
        offset: of its first element.
        dtype: of the tensor.
        shape: of the tensor.
        strides: in elements, as they are in the file.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Finder:
    """Finds the bytes of a checkpoint's tensors.

    Args:
        directory: of the checkpoint.
        metadata: its metadata.
    """

    def __init__(self, directory: Path, metadata: Metadata) -> None:
        self._directory = directory
        self._tensors = {
            MetadataIndex(key, chunk.offsets): (entry.properties.dtype, tuple(chunk.sizes))
            for key, entry in dcp_metadata.tensors_of(metadata).items()
            for chunk in entry.chunks
        }
        self._headers: dict[Path, Header | None] = {}

    def find(self, index: MetadataIndex, info: Any) -> Stored | None:
        """Find the bytes of a tensor's chunk; returns None if it is stored in a way that only `torch.load` reads.

        Args:
            index: of the chunk.
            info: DCP's storage data.

        Raises:
            CheckpointError: if the file holds no such tensor.
        """
        dtype, shape = self._tensors[index]
        size_bytes = math.prod(shape) * dtype.itemsize
        path = self._directory / info.relative_path
        data_start = getattr(info, "data_start", None)  # in what this package wrote
        if data_start is not None:
            if not 0 <= data_start <= data_start + size_bytes <= info.length:
                raise CheckpointError(
                    f"{self._directory} is damaged: {index.fqn!r} doesn't fit into its part of a file"
                )
            return _contiguous(path, info.offset + data_start, dtype, shape)
        header = self._header_of(path)
        if header is None:
            stored = _in_archive(path, info.offset, info.length)
            return stored if stored and (stored.dtype, stored.shape) == (dtype, shape) else None
        for tensor in header.tensors:
            if tensor.layout.name == index.fqn and tensor.layout.size_bytes == size_bytes:
                return _contiguous(path, header.data_start + tensor.start, dtype, shape)
        raise CheckpointError(f"{path} has no tensor {index.fqn!r} of {dtype} {list(shape)}")

    def _header_of(self, path: Path) -> Header | None:
        """Return the header of a safetensors file, None for any other file."""
        if path not in self._headers:
            with path.open("rb") as file:
                head = file.read(9)
            self._headers[path] = safetensors_files.read_header(path) if head[8:] == b"{" else None
        return self._headers[path]


def _contiguous(path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Stored:
    strides = [1] * len(shape)
    for dimension in range(len(shape) - 2, -1, -1):
        strides[dimension] = strides[dimension + 1] * max(1, shape[dimension + 1])
    return Stored(path, offset, dtype, shape, tuple(strides))


def _in_archive(path: Path, offset: int, length: int) -> Stored | None:
    """Find the bytes of the tensor that an archive holds; None if it is stored in an unusual way, or damaged."""
    with path.open("rb") as file:
        part = _Part(file, offset, length)
        try:
            with zipfile.ZipFile(part) as archive:
                records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            tensor = _described(part, records)
            begin = offset + _data_start(part, records["data/0"]) + tensor.storage_offset * tensor.dtype.itemsize
        except OSError:
            raise
        except Exception:  # noqa: BLE001  # whatever a damaged archive leads to: torch.load has a message for it
            return None
    return Stored(path, begin, tensor.dtype, tensor.shape, tensor.strides)


def _described(part: _Part, records: Mapping[str, zipfile.ZipInfo]) -> _Rebuilt:
    """Read how a tensor lies in its storage, and check that all of it is there."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()) or "data/1" in records:
        raise _UnusualError
    if "byteorder" in records and _bytes_of(part, records["byteorder"]) != b"little":
        raise _UnusualError
    tensor = _TensorUnpickler(io.BytesIO(_bytes_of(part, records["data.pkl"]))).load()
    if not isinstance(tensor, _Rebuilt) or min((tensor.storage_offset, *tensor.shape, *tensor.strides)) < 0:
        raise _UnusualError
    elements = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)) + 1
    if 0 not in tensor.shape:
        end = (tensor.storage_offset + elements) * tensor.dtype.itemsize
        if end > records["data/0"].file_size:
            raise _UnusualError
    return tensor


class _UnusualError(Exception):
    """Raised for what only `torch.load` can read."""


class _Part(io.RawIOBase):
    """A part of an open file, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(content)
        return content


def _data_start(part: _Part, info: zipfile.ZipInfo) -> int:
    part.seek(info.header_offset)
    name_bytes, extra_bytes = struct.unpack_from("<HH", part.read(_LOCAL_HEADER_BYTES), 26)
    return info.header_offset + _LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes)


def _bytes_of(part: _Part, info: zipfile.ZipInfo) -> bytes:
    """Read a record; `zipfile` would compare its CRC, which PyTorch may leave 0."""
    if info.file_size > _LONGEST_PICKLE_BYTES:
        raise _UnusualError
    part.seek(_data_start(part, info))
    return part.read(info.file_size)


class _Storage(NamedTuple):
    """What a pickle says of a tensor's storage."""

    dtype: torch.dtype


class _Rebuilt(NamedTuple):
    """What a pickle says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int


class _TensorUnpickler(pickle.Unpickler):
    """Reads the description of one plain tensor; runs nothing that the pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return _rebuilt_v3
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        known = getattr(torch, name, None) if module in {"torch", "torch.storage"} else None
        if isinstance(known, torch.dtype):
            return known
        if name == "UntypedStorage":
            return partial(_Storage, torch.uint8)
        if name.endswith("Storage") and isinstance(getattr(known, "dtype", None), torch.dtype):
            return partial(_Storage, known.dtype)  # type: ignore[union-attr]  # it has one
        raise _UnusualError

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, *_ = pid
        if kind != "storage" or key != "0" or not isinstance(storage, partial):
            raise _UnusualError
        made = storage()
        assert isinstance(made, _Storage)  # `find_class` made it
        return made


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, hooks: Any, *rest: Any) -> _Rebuilt:
    return _rebuilt_v3(storage, offset, shape, strides, _gradient, hooks, getattr(storage, "dtype", None), *rest)


def _rebuilt_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, hooks: Any, dtype: Any, *rest: Any
) -> _Rebuilt:
    numbers = (offset, *shape, *strides)
    if hooks or any(rest) or not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise _UnusualError
    if len(shape) != len(strides) or not all(type(number) is int for number in numbers):
        raise _UnusualError
    return _Rebuilt(dtype, tuple(shape), tuple(strides), offset)
