"""The safetensors format: the header that goes before the data, and how it is read back. Pure, without torch.

    8 bytes     little-endian length of the header
    header      JSON: name -> {dtype, shape, data_offsets}, and texts in `__metadata__`; spaces may follow it
    data        the tensors' bytes, without holes, at the offsets that the header gives

Ours puts first the tensors whose size is a multiple of 4096, and begins its data 64 bytes behind one. There, torch's
large tensors begin in memory: nearly every byte of a real model can then be read by direct I/O to where it belongs, and
is not copied. What the format lacks lies in `__metadata__`: tied weights, checksums, and where
several ranks have a tensor's rows, which of them these are. Anybody may use such keys with another meaning: they are
ours in a file with the key `ckpt.format`, and in one without it that has no other keys and lies exactly as ours did.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from ckpt.disk.direct_io import ALIGNMENT, round_up
from ckpt.errors import CheckpointError
from ckpt.formats.filenames import to_filename
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import TensorLayout

ROWS = "rows_of_whole"
"""Where the metadata say which rows a file has of tensors that it has not as a whole."""

LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

DATA_PLACE = 64
"""Where in a page the data begins: where the C library begins a large piece of memory that is aligned to 64 bytes."""

_METADATA = "__metadata__"

_NAMES, _TIED, _CHECKSUMS, _PAIRS = "names", "tied", "xxh3_64", "pairs"

_FORMAT, _VERSION = "ckpt.format", "1"
"""The key that makes the others ours. Files from before it are recognised by all else, as `_ours` says."""

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
"""The format's names. complex128 has none: such a tensor is stored as pairs of float64, and `pairs` names it."""

_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}

Tied = Mapping[str, tuple[str, int]]
"""Names that share another's bytes: the name that has them, and their own place in the state, from 0."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file: its layout, and where its bytes lie in the data."""

    layout: TensorLayout
    start: int
    checksum: str = ""
    """XXH3-64 of its bytes in hexadecimal; empty where there is none."""
    rows: tuple[int, int] | None = None
    """Where it is a part of a tensor: its first row there, and how many that has."""
    key: str = field(default="", compare=False)
    """Its name in the header, where that was read."""

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + self.layout.size_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    entries: tuple[Entry, ...]
    """In the order of the state."""
    tied: Tied
    data_start: int
    """Where the data begins in the file."""


def place(layouts: Sequence[TensorLayout]) -> tuple[Entry, ...]:
    """Give every tensor a place: sizes that are multiples of the alignment first, then the widest elements."""

    def key(number: int) -> tuple[bool, int]:
        size_bytes = layouts[number].size_bytes
        return size_bytes % ALIGNMENT != 0, -BYTES_PER_ELEMENT[layouts[number].dtype]

    order = sorted(range(len(layouts)), key=key)  # stable: the state's order among equals
    starts = dict(zip(order, accumulate((layouts[number].size_bytes for number in order), initial=0), strict=False))
    return tuple(Entry(layout, starts[number]) for number, layout in enumerate(layouts))


def part_of(entry: Entry, rows: slice) -> Entry:
    """Some rows of a tensor in a file; what isn't all of it has no checksum."""
    layout = entry.layout
    if not layout.shape or rows == slice(0, layout.shape[0]):
        return entry
    row_bytes = layout.size_bytes // layout.shape[0]
    cut = replace(layout, shape=(rows.stop - rows.start, *layout.shape[1:]))
    return Entry(cut, entry.start + rows.start * row_bytes)


def header_bytes(entries: Sequence[Entry], tied: Tied) -> bytes:
    """The beginning of the file, up to the data: its length depends on no checksum's value."""
    stored = {entry.layout.name: stored_name(entry.layout.name) for entry in entries}
    extras = {
        _NAMES: {stored[name]: name for name in stored if stored[name] != name},
        _TIED: dict(tied),
        _CHECKSUMS: {stored[entry.layout.name]: entry.checksum for entry in entries if entry.checksum},
        _PAIRS: [stored[entry.layout.name] for entry in entries if entry.layout.dtype == "complex128"],
        ROWS: {stored[entry.layout.name]: entry.rows for entry in entries if entry.rows},
    }
    metadata = {"format": "pt", _FORMAT: _VERSION}  # transformers opens no file without "format"
    metadata |= {key: json.dumps(value) for key, value in extras.items() if value}
    content: dict[str, Any] = {_METADATA: metadata}
    for entry in entries:
        dtype, shape = entry.layout.dtype, list(entry.layout.shape)
        if dtype == "complex128":
            dtype, shape = "float64", [*shape, 2]
        content[stored[entry.layout.name]] = {
            "dtype": _DTYPES[dtype],
            "shape": shape,
            "data_offsets": [entry.start, entry.end],
        }
    text = json.dumps(content, separators=(",", ":")).encode()
    length = round_up(8 + len(text) - DATA_PLACE) + DATA_PLACE - 8
    if length > LONGEST_HEADER_BYTES:
        raise CheckpointError(
            f"{len(entries):,} tensors need a header of {length:,} bytes, more than safetensors allows"
        )
    return struct.pack("<Q", length) + text.ljust(length)


def parse(head: bytes, file_bytes: int, where: str) -> Header:
    """Read a header; `head` is the file's beginning, of at least `header_length(head)` bytes.

    Raises:
        CheckpointError: if it is damaged, or the file too short for its data.
    """
    data_start = header_length(head, file_bytes, where)
    try:
        content = json.loads(head[8:data_start])
        metadata = content.pop(_METADATA, None) or {}
        if not _ours(content, metadata, data_start):
            metadata = {}
        entries = tuple(_entries(content, metadata))
        _check_places(entries, file_bytes - data_start)
        return Header(entries, _tied(entries, metadata), data_start)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _ours(content: Mapping[str, Any], metadata: Mapping[str, Any], data_start: int) -> bool:
    """Whether the metadata are what this package wrote, now or before it said so.

    Before, a file had no keys but ours, its data began at a multiple of 4096, and its tensors lay where `place` puts
    them: another program's file is all of that by a rare accident only.
    """
    if _FORMAT in metadata:
        if metadata[_FORMAT] != _VERSION:
            raise ValueError(f"it has version {metadata[_FORMAT]!r} of our metadata, and {_VERSION} is known here")
        return True
    if metadata.keys() - {"format", _NAMES, _TIED, _CHECKSUMS, _PAIRS, ROWS} or data_start % ALIGNMENT:
        return False
    try:
        names, pairs = json.loads(metadata.get(_NAMES, "{}")), json.loads(metadata.get(_PAIRS, "[]"))
        if any(stored_name(name) != key for key, name in names.items()):
            return False
        layouts = [_layout(key, told, pair=key in pairs) for key, told in content.items()]
    except (ValueError, TypeError, AttributeError):
        return False
    starts = [int(told["data_offsets"][0]) for told in content.values()]
    return [entry.start for entry in place(layouts)] == starts


def _entries(content: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[Entry]:
    names, checksums, pairs, rows = (json.loads(metadata.get(key, "{}")) for key in (_NAMES, _CHECKSUMS, _PAIRS, ROWS))
    for stored, told in content.items():
        layout = _layout(str(names.get(stored, stored)), told, pair=stored in pairs)
        start, end = map(int, told["data_offsets"])
        if end - start != layout.size_bytes:
            raise ValueError(f"{stored!r} has a size that its shape and dtype contradict")
        first, whole = map(int, rows.get(stored, (0, 0)))
        yield Entry(layout, start, str(checksums.get(stored, "")), (first, whole) if stored in rows else None, stored)


def _tied(entries: Sequence[Entry], metadata: Mapping[str, str]) -> Tied:
    told = json.loads(metadata.get(_TIED, "{}"))
    tied = {str(name): (str(owner), int(place)) for name, (owner, place) in told.items()}
    known = {entry.layout.name for entry in entries}
    if not {owner for owner, _ in tied.values()} <= known or set(tied) & known:
        raise ValueError("its tied names point nowhere")
    return tied


def in_order(headers: Iterable[Header]) -> list[str]:
    """The names of a state's tensors in its order, from the headers of its files."""
    headers = list(headers)
    own = iter([entry.layout.name for header in headers for entry in header.entries])
    tied_at = {place: name for header in headers for name, (_, place) in header.tied.items()}
    names: list[str] = []
    for name in own:
        while len(names) in tied_at:
            names.append(tied_at.pop(len(names)))
        names.append(name)
    return [*names, *(tied_at[place] for place in sorted(tied_at))]


def header_length(head: bytes, file_bytes: int, where: str) -> int:
    """Bytes before the data, from the first eight bytes of a file.

    Raises:
        CheckpointError: if that can't be.
    """
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else -1
    if not 0 < length <= min(LONGEST_HEADER_BYTES, file_bytes - 8):
        raise CheckpointError(f"{where} is damaged, or no safetensors file: its header can't be {length} bytes long")
    return 8 + int(length)


def _layout(name: str, told: Mapping[str, Any], *, pair: bool) -> TensorLayout:
    shape = tuple(int(size) for size in told["shape"])
    if any(size < 0 for size in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    if pair:
        return TensorLayout(name, shape[:-1], "complex128")
    if told["dtype"] not in _BY_NAME:
        raise ValueError(f"{name!r} has the dtype {told['dtype']}; known are {', '.join(_BY_NAME)}")
    return TensorLayout(name, shape, _BY_NAME[told["dtype"]])


def _check_places(entries: Sequence[Entry], data_bytes: int) -> None:
    """The data must be covered without holes or overlaps, and be there."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise ValueError(f"the data has a hole or an overlap at {min(entry.start, end)}")
        end = entry.end
    if end != data_bytes:
        raise ValueError(f"it has {data_bytes} bytes of data, and the header tells of {end}")


def stored_name(name: str) -> str:
    """The name in the file: the tensor's own, unless other readers would refuse it; no two are the same."""
    if name == _METADATA:
        return f"%{name}"
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return to_filename(name)
    return to_filename(name) if "%" in name else name


def footprint_bytes(layouts: Sequence[TensorLayout], file_count: int) -> int:
    """The most bytes that the files of a state take beside the tensors' own."""
    names = sum(6 * len(json.dumps(layout.name)) for layout in layouts)  # in the header, its extras, and the index
    return names + 512 * len(layouts) + 2 * ALIGNMENT * file_count
