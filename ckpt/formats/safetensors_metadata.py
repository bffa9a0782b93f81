"""The metadata that this package keeps in safetensors files: what the format itself can't hold of a state.

The format has no order of tensors, no shared tensors, no complex128, no checksums, and no parts of tensors; and names
must be valid UTF-8, `__metadata__` excluded. `__metadata__` may hold any texts. Ours, all JSON but the first:

    ckpt.format     the version; the other keys are ours in a file with this key only, since any program may use them
    order           key -> index of the tensor in the state, from 0
    names           key -> name, where they differ
    tied            name -> [name of the tensor whose memory it shares, index in the state]
    pairs           keys of complex tensors that are stored with a last dimension for the real and the imaginary part
    xxh3_64         key -> XXH3-64 of the tensor's bytes, in hexadecimal
    rows_of_whole   key -> [first row, rows of the whole tensor], where the file has a part of a tensor

Each file describes itself, so it can be read without its index, and its tensors have their ordinary names. DCP's writer
takes no metadata: its files are described by the same keys in the index.

Files that `safetensors_file` wrote before have a note instead, under the key `ckpt` of a single file or an index, and
`safetensors_tuned` once wrote files without `ckpt.format`. Both are still read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ckpt.formats.filenames import to_filename
from ckpt.state.layout import TensorLayout

if TYPE_CHECKING:
    import torch


VERSION_KEY, _VERSION = "ckpt.format", "1"
_ORDER, _NAMES, _TIED, _PAIRS, _CHECKSUMS, _ROWS = "order", "names", "tied", "pairs", "xxh3_64", "rows_of_whole"

KEYS_WITHOUT_VERSION = {"format", _NAMES, _TIED, _CHECKSUMS, _PAIRS, _ROWS}
"""The keys of a file that `safetensors_tuned` wrote before it wrote the version."""

NOTE_KEY = "ckpt"

RESERVED_KEY = "__metadata__"

Tied = Mapping[str, tuple[str, int]]
"""Tied tensors by name: the name of the tensor whose memory one shares, and its own index in the state."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor in a file, or some rows of it.

    Attributes:
        layout: of what the file holds, under the whole tensor's name.
        index: of the tensor in the state, from 0; -1 if unknown.
        rows: the first row and the rows of the whole tensor, if the file holds a part of it.
        is_pair: whether it is complex and stored as pairs of real numbers.
        start: the offset of its bytes in the data.
        checksum: XXH3-64 of its bytes in hexadecimal; empty if there is none.
        key: its name in the header.
    """

    layout: TensorLayout
    index: int = -1
    rows: tuple[int, int] | None = None
    is_pair: bool = False
    start: int = 0
    checksum: str = ""
    key: str = field(default="", compare=False)

    @property
    def end(self) -> int:
        """The offset of the end of its bytes in the data."""
        return self.start + self.layout.size_bytes

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn what the file holds into the tensor that was saved."""
        import torch

        if not self.is_pair:
            return tensor
        # A view of a larger buffer may begin at an offset where no complex number can.
        return torch.view_as_complex(tensor if tensor.storage_offset() % 2 == 0 else tensor.clone())


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a file, by key; without any, keys are names."""

    order: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    tied: Tied = field(default_factory=dict)
    pairs: Collection[str] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def info(self, key: str, layout: TensorLayout, start: int) -> TensorInfo:
        """Describe the tensor with this key: `layout` and `start` come from the header."""
        return TensorInfo(
            replace(layout, name=self.names.get(key, key)),
            self.order.get(key, -1),
            self.rows.get(key),
            key in self.pairs,
            start,
            self.checksums.get(key, ""),
            key,
        )

    def with_rows(self, texts: Mapping[str, str]) -> Metadata:
        """Add the rows that a file's own metadata name: an earlier note has none."""
        return replace(self, rows=_rows(texts))


def stored_name(name: str) -> str:
    """Return the key of a tensor in a file: its name, unless other readers would refuse it; no two names share one."""
    if name == RESERVED_KEY:
        return f"%{name}"
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return to_filename(name)
    return to_filename(name) if "%" in name else name


def to_texts(infos: Iterable[TensorInfo], tied: Tied) -> dict[str, str]:
    """Return the metadata of a file with these tensors, as a header or an index has them."""
    by_key = {stored_name(info.layout.name): info for info in infos}
    values: dict[str, Any] = {
        _ORDER: {key: info.index for key, info in by_key.items() if info.index >= 0},
        _NAMES: {key: info.layout.name for key, info in by_key.items() if key != info.layout.name},
        _TIED: dict(tied),
        _PAIRS: [key for key, info in by_key.items() if info.is_pair],
        _CHECKSUMS: {key: info.checksum for key, info in by_key.items() if info.checksum},
        _ROWS: {key: info.rows for key, info in by_key.items() if info.rows},
    }
    texts = {"format": "pt", VERSION_KEY: _VERSION}  # transformers opens no file without "format"
    return texts | {key: json.dumps(value) for key, value in values.items() if value}


def from_texts(texts: Mapping[str, str]) -> Metadata:
    """Return the metadata that `to_texts` wrote, in this version or before it wrote the version.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: if they are damaged, or of another version.
    """
    if texts.get(VERSION_KEY, _VERSION) != _VERSION:
        raise ValueError(f"it has version {texts[VERSION_KEY]!r} of our metadata, and {_VERSION} is known here")
    order, names, tied, pairs, checksums = (
        json.loads(texts.get(key, "{}")) for key in (_ORDER, _NAMES, _TIED, _PAIRS, _CHECKSUMS)
    )
    return Metadata(
        {str(key): int(index) for key, index in order.items()},
        {str(key): str(name) for key, name in names.items()},
        {str(name): (str(owner), int(index)) for name, (owner, index) in tied.items()},
        list(pairs),
        {str(key): str(checksum) for key, checksum in checksums.items()},
        _rows(texts),
    )


def from_note(text: object) -> Metadata | None:
    """Return the metadata in a note of earlier versions; None if it is none: other programs may use the same key.

    Raises:
        ValueError, TypeError, AttributeError: if it is damaged.
    """
    try:
        note = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(note, dict) or note.keys() != {"names", "pairs"}:
        return None
    order: dict[str, int] = {}
    names: dict[str, str] = {}
    tied: dict[str, tuple[str, int]] = {}
    for index, (name, key) in enumerate(note["names"].items()):
        if key in names:
            tied[name] = names[key], index
        else:
            order[str(key)], names[str(key)] = index, name
    return Metadata(order, names, tied, list(note["pairs"]))


def in_order(infos: Iterable[TensorInfo], tied: Tied) -> list[str]:
    """Return the names of a state's tensors in its order, from all of its files.

    Where a file of an earlier version or of another program has no order, it is that of the headers.
    """
    infos = list(infos)
    if all(info.index >= 0 for info in infos):
        indices = [(info.index, info.layout.name) for info in infos]
        indices += [(index, name) for name, (_, index) in tied.items()]
        return [name for _, name in sorted(indices, key=lambda pair: pair[0])]
    tied_at = {index: name for name, (_, index) in tied.items()}
    names: list[str] = []
    for info in infos:
        while len(names) in tied_at:
            names.append(tied_at.pop(len(names)))
        names.append(info.layout.name)
    return [*names, *(tied_at[index] for index in sorted(tied_at))]


def names_bytes(layouts: Sequence[TensorLayout]) -> int:
    """Return the most bytes that the names of tensors take in a header, its metadata and an index."""
    return sum(8 * len(json.dumps(json.dumps(layout.name))) for layout in layouts)


def _rows(texts: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    rows = json.loads(texts.get(_ROWS, "{}"))
    return {str(key): (int(first), int(whole)) for key, (first, whole) in rows.items()}
