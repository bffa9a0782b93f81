"""The safetensors format: the header that goes before the data, and how it is read back. Pure, without torch.

    8 bytes     little-endian length of the header
    header      JSON: key -> {dtype, shape, data_offsets}, and texts in `__metadata__`; spaces may follow it
    data        the tensors' bytes, without holes, at the offsets that the header gives

`header_bytes` writes headers for direct I/O. The tensors whose size is a multiple of 4096 come first, and the data
begins 64 bytes after a multiple of 4096, which is where torch's large tensors begin in memory. So nearly every byte of
a real model can be read by direct I/O to where it belongs, and is not copied.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ckpt.disk.direct_io import ALIGNMENT, DATA_OFFSET, round_up
from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_metadata
from ckpt.formats.safetensors_metadata import (
    KEYS_WITHOUT_VERSION,
    NOTE_KEY,
    RESERVED_KEY,
    VERSION_KEY,
    Metadata,
    TensorInfo,
    Tied,
    stored_name,
)
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import TensorLayout

LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
    "complex64": "C64",
}
"""The format's names of dtypes. It has none for complex128."""

_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}

_PARTS = {"complex64": "float32", "complex128": "float64"}
"""The dtype of a complex number's parts, where it is stored as a pair."""

_PAIR_OF = {part: dtype for dtype, part in _PARTS.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header.

    Attributes:
        tensors: in the order of the header.
        tied: the tied names whose owner is in this file.
        data_start: where the data begins in the file.
        is_ours: whether this package wrote the file.
    """

    tensors: tuple[TensorInfo, ...]
    tied: Tied
    data_start: int
    is_ours: bool = False

    @property
    def is_aligned(self) -> bool:
        """Whether the data begins where direct I/O needs it, now or in earlier versions."""
        return self.data_start % ALIGNMENT in {0, DATA_OFFSET}


def assign_offsets(tensors: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """Give every tensor an offset: sizes that are multiples of the alignment first, then the widest elements."""

    def key(number: int) -> tuple[bool, int]:
        layout = tensors[number].layout
        return layout.size_bytes % ALIGNMENT != 0, -BYTES_PER_ELEMENT[layout.dtype]

    order = sorted(range(len(tensors)), key=key)  # stable: the state's order among equals
    sizes = (tensors[number].layout.size_bytes for number in order)
    starts = dict(zip(order, accumulate(sizes, initial=0), strict=False))
    return tuple(replace(tensor, start=starts[number]) for number, tensor in enumerate(tensors))


def select_rows(tensor: TensorInfo, rows: slice) -> TensorInfo:
    """Select rows of a tensor in a file; unless they are all of it, there is no checksum of them."""
    layout = tensor.layout
    if not layout.shape or rows == slice(0, layout.shape[0]):
        return tensor
    row_bytes = layout.size_bytes // layout.shape[0]
    part = replace(layout, shape=(rows.stop - rows.start, *layout.shape[1:]))
    return replace(tensor, layout=part, start=tensor.start + rows.start * row_bytes, checksum="")


def header_bytes(tensors: Sequence[TensorInfo], tied: Tied) -> bytes:
    """Return the beginning of a file, up to the data. Its length doesn't depend on the checksums' values.

    Raises:
        CheckpointError: if it is longer than the format allows.
    """
    content: dict[str, Any] = {RESERVED_KEY: safetensors_metadata.to_texts(tensors, tied)}
    for tensor in tensors:
        dtype, shape = tensor.layout.dtype, list(tensor.layout.shape)
        if tensor.is_pair:
            dtype, shape = _PARTS[dtype], [*shape, 2]
        content[stored_name(tensor.layout.name)] = {
            "dtype": _DTYPES[dtype],
            "shape": shape,
            "data_offsets": [tensor.start, tensor.end],
        }
    text = json.dumps(content, separators=(",", ":")).encode()
    length = round_up(8 + len(text) - DATA_OFFSET) + DATA_OFFSET - 8
    if length > LONGEST_HEADER_BYTES:
        raise CheckpointError(
            f"{len(tensors):,} tensors need a header of {length:,} bytes, more than safetensors allows"
        )
    return struct.pack("<Q", length) + text.ljust(length)


def parse(head: bytes, file_bytes: int, where: str, index: Metadata | None = None) -> Header:
    """Read a header.

    Args:
        head: the beginning of the file, at least `header_length(head)` bytes.
        file_bytes: the size of the file.
        where: the file's name in messages.
        index: the metadata in the index of the files that this one belongs to.

    Raises:
        CheckpointError: if it is damaged, or the file too short for its data.
    """
    data_start = header_length(head, file_bytes, where)
    try:
        content = json.loads(head[8:data_start])
        texts = content.pop(RESERVED_KEY, None) or {}
        metadata = _metadata_of(content, texts, data_start, index)
        tensors = tuple(_tensors(content, metadata or Metadata()))
        _check_offsets(tensors, file_bytes - data_start)
        return Header(tensors, _tied(tensors, metadata or Metadata(), index), data_start, metadata is not None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _metadata_of(
    content: Mapping[str, Any], texts: Mapping[str, Any], data_start: int, index: Metadata | None
) -> Metadata | None:
    """Return what this package wrote about a file's tensors, in any version; None for another program's file."""
    if VERSION_KEY in texts:
        return safetensors_metadata.from_texts(texts)
    note = safetensors_metadata.from_note(texts.get(NOTE_KEY))
    if note is not None:
        missing = next((key for key in note.names if key not in content), None)
        if missing is not None:
            raise ValueError(f"it lacks tensor {missing!r}")
        return note
    if index is not None:
        return index.with_rows(texts)
    return safetensors_metadata.from_texts(texts) if _is_of_before_the_version(content, texts, data_start) else None


def _is_of_before_the_version(content: Mapping[str, Any], texts: Mapping[str, Any], data_start: int) -> bool:
    """Return whether `safetensors_tuned` wrote a file before it wrote the version.

    Such a file has no keys but ours, its data begins at a multiple of 4096, and its tensors lie where `assign_offsets`
    puts them. A file of another program fulfils all of that only by a rare accident.
    """
    if texts.keys() - KEYS_WITHOUT_VERSION or data_start % ALIGNMENT:
        return False
    try:
        tensors = list(_tensors(content, safetensors_metadata.from_texts(texts)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    starts = [tensor.start for tensor in assign_offsets(tensors)]
    return starts == [tensor.start for tensor in tensors]


def _tensors(content: Mapping[str, Any], metadata: Metadata) -> Iterator[TensorInfo]:
    for key, stored in content.items():
        start, end = map(int, stored["data_offsets"])
        tensor = metadata.info(key, _layout(key, stored, is_pair=key in metadata.pairs), start)
        if end - start != tensor.layout.size_bytes:
            raise ValueError(f"{key!r} has a size that its shape and dtype contradict")
        yield tensor


def _tied(tensors: Sequence[TensorInfo], metadata: Metadata, index: Metadata | None) -> Tied:
    """Return the tied names of a file's tensors; an index has those of other files, too."""
    names = {tensor.layout.name for tensor in tensors}
    tied = {name: owner for name, owner in metadata.tied.items() if index is None or owner[0] in names}
    if not {owner for owner, _ in tied.values()} <= names or tied.keys() & names:
        raise ValueError("tied names refer to missing tensors, or to themselves")
    return tied


def header_length(head: bytes, file_bytes: int, where: str) -> int:
    """Compute the number of bytes before the data from the first eight bytes of a file.

    Raises:
        CheckpointError: if the header can't have that length.
    """
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else -1
    if not 0 < length <= min(LONGEST_HEADER_BYTES, file_bytes - 8):
        raise CheckpointError(f"{where} is damaged, or no safetensors file: its header can't be {length} bytes long")
    return 8 + int(length)


def _layout(key: str, stored: Mapping[str, Any], *, is_pair: bool) -> TensorLayout:
    shape = tuple(int(size) for size in stored["shape"])
    if any(size < 0 for size in shape):
        raise ValueError(f"{key!r} has the shape {shape}")
    if stored["dtype"] not in _BY_NAME:
        raise ValueError(f"{key!r} has the dtype {stored['dtype']}; known are {', '.join(_BY_NAME)}")
    dtype = _BY_NAME[stored["dtype"]]
    return TensorLayout(key, shape[:-1], _PAIR_OF[dtype]) if is_pair else TensorLayout(key, shape, dtype)


def _check_offsets(tensors: Sequence[TensorInfo], data_bytes: int) -> None:
    """Check that the tensors cover the data without holes or overlaps, and that it is complete."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise ValueError(f"the data has a hole or an overlap at {min(tensor.start, end)}")
        end = tensor.end
    if end != data_bytes:
        raise ValueError(f"it has {data_bytes} bytes of data, and its header describes {end}")


def footprint_bytes(layouts: Sequence[TensorLayout], file_count: int) -> int:
    """Return the most bytes that the files of a state take in addition to the tensors' own."""
    return safetensors_metadata.names_bytes(layouts) + 512 * len(layouts) + 2 * ALIGNMENT * file_count
