"""What the safetensors format can't hold of a state, and how it is kept in the metadata that the format allows.

The format has no order of tensors, no shared tensors, no complex128, and names in valid UTF-8 only, `__metadata__`
not among them. An ordinary name stays as it is, so that other readers find it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import quote_from_bytes

from ckpt.state.layout import TensorLayout

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

METADATA_KEY = "ckpt"
"""Where our note stands among a file's metadata."""

_RESERVED = "__metadata__"


@dataclass(frozen=True, slots=True)
class Note:
    """How to make a state of what a file holds.

    Attributes:
        key_of: the file's key for each name of the state, in the state's order; tied names share a key.
        pairs: the complex keys, whose last dimension is a real and an imaginary part.
    """

    key_of: dict[str, str]
    pairs: list[str]

    def to_json(self) -> str:
        """ASCII, whatever the names."""
        return json.dumps({"names": self.key_of, "pairs": self.pairs})

    @classmethod
    def from_json(cls, text: str) -> Note:
        """The note of `to_json`.

        Raises:
            ValueError, LookupError, TypeError: if it is damaged.
        """
        found = json.loads(text)
        return cls({str(name): str(key) for name, key in found["names"].items()}, list(found["pairs"]))

    def restore(self, tensors: dict[str, torch.Tensor], names: list[str]) -> State:
        """The tensors of these names, tied ones as one tensor, from what was read by key."""
        whole = {key: self.value(key, tensor) for key, tensor in tensors.items()}
        return {name: whole[self.key_of[name]] for name in names}

    def value(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor that was saved, from what a file holds under that key."""
        return _complex(tensor) if key in self.pairs else tensor


def is_note(text: object) -> TypeGuard[str]:
    """Whether it is a note of ours: other programs may keep something else under the same key."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"names", "pairs"}


def note_of(layout: Iterable[TensorLayout], as_pairs: Collection[str] = ("complex128",)) -> Note:
    """The note on a state of that layout; pure, so that many ranks need not tell each other.

    Tensors of the dtypes in `as_pairs` get a last dimension for the real and the imaginary part.
    """
    tensors = {tensor.name: tensor for tensor in layout}
    keys: dict[str, str] = {}
    used: set[str] = set()
    for tensor in tensors.values():
        keys[tensor.name] = (
            keys[tensor.same_as] if tensor.same_as is not None else _unused_key(tensor.name, tensors, used)
        )
        used.add(keys[tensor.name])
    pairs = [keys[tensor.name] for tensor in tensors.values() if tensor.same_as is None and tensor.dtype in as_pairs]
    return Note(keys, pairs)


def pack(state: State, note: Note) -> State:
    """The tensors by key as safetensors takes them, contiguous and no two sharing memory."""
    import torch

    tensors: State = {}
    taken: dict[int, list[tuple[int, int]]] = {}  # by storage, in the order of addresses, none overlapping another
    for name, original in state.items():
        key = note.key_of[name]
        if key in tensors:
            continue
        tensor = original.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if key in note.pairs:
            tensor = torch.view_as_real(tensor)
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        areas = taken.setdefault(tensor.untyped_storage().data_ptr(), [])
        place = bisect_left(areas, (start, end))
        neighbours = areas[max(0, place - 1) : place + 1]
        if any(start < other_end and other_start < end for other_start, other_end in neighbours):
            tensor = tensor.clone()  # a view that overlaps another: safetensors refuses it
        elif tensor.nbytes:
            areas.insert(place, (start, end))
        tensors[key] = tensor
    return tensors


def names_bytes(tensor: TensorLayout) -> int:
    """The most that a tensor's name takes in a header, an index and a note."""
    return 4 * len(json.dumps(json.dumps(tensor.name)))


def _complex(pairs: torch.Tensor) -> torch.Tensor:
    import torch

    # A view of a larger buffer may begin where no complex number can.
    return torch.view_as_complex(pairs if pairs.storage_offset() % 2 == 0 else pairs.clone())


def _unused_key(name: str, names: Collection[str], used: Collection[str]) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        pass
    else:
        if name != _RESERVED:
            return name
    key = quote_from_bytes(name.encode("utf-8", "surrogatepass"), safe="")
    while key in names or key in used or key == _RESERVED:
        key += "~"
    return key
