"""A snapshot: a copy of a state in memory that is used again for the next one, and that another process can map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt.disk import direct_io
from ckpt.disk.room import size
from ckpt.errors import CheckpointError, wrapped
from ckpt.state import dtypes
from ckpt.state.available import available_bytes
from ckpt.state.layout import Layout, State, TensorLayout, layout_of_state

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of a snapshot, and where it lies in the memory."""

    layout: TensorLayout
    offset: int
    """In bytes; of a tied tensor, its owner's."""


def place(layout: Layout) -> list[Placed]:
    """Where the tensors of a state lie in a snapshot: one after the other, tied ones once.

    They are aligned so that they can be written from where they lie, past the page cache.
    """
    offsets: dict[str, int] = {}
    end = 0
    for tensor in layout:
        if tensor.same_as is None:
            offsets[tensor.name] = end
            end += direct_io.round_up(tensor.size_bytes)
    return [Placed(tensor, offsets[tensor.owner]) for tensor in layout]


def size_of(placed: Sequence[Placed]) -> int:
    """The bytes of memory that a snapshot takes; never 0."""
    ends = (tensor.offset + direct_io.round_up(tensor.layout.size_bytes) for tensor in placed)
    return max([direct_io.ALIGNMENT, *ends])


def tensors_in(memory: mmap.mmap, placed: Sequence[Placed]) -> State:
    """The tensors of a snapshot, as views of its memory; tied ones are one tensor."""
    owners = {tensor.layout.name: _view(memory, tensor) for tensor in placed if tensor.layout.same_as is None}
    return {tensor.layout.name: owners[tensor.layout.owner] for tensor in placed}


def _view(memory: mmap.mmap, placed: Placed) -> torch.Tensor:
    import torch

    dtype, layout = dtypes.torch_dtype(placed.layout.dtype), placed.layout
    if not layout.elements:
        return torch.empty(layout.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=torch.uint8, count=layout.size_bytes, offset=placed.offset)
    return flat.view(dtype).reshape(layout.shape)


class SnapshotMemory:
    """Memory that holds one snapshot at a time; it grows when a state needs more, and keeps its pages between them.

    Attributes:
        descriptor: of the memory, for another process to map; -1 once it is closed.
        mapped: the memory in this process; None as long as there is none.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("checkpoint-snapshot", os.MFD_CLOEXEC)
        self.mapped: mmap.mmap | None = None

    def reserve(self, layout: Layout) -> None:
        """Have the memory for a snapshot of such a state, all its pages too, so that taking one waits for none.

        Raises:
            CheckpointError: if there isn't so much.
        """
        self._grow(size_of(place(layout)))

    def take(self, state: State) -> list[Placed]:
        """Copy a state into the memory; returns where its tensors lie. What was there is overwritten.

        Raises:
            CheckpointError: if there isn't memory enough, or a tensor can't be stored.
        """
        import torch

        placed = place(layout_of_state(state))
        copies = tensors_in(self._grow(size_of(placed)), placed)
        with torch.no_grad():
            for name in (tensor.layout.name for tensor in placed if tensor.layout.same_as is None):
                with wrapped(f"tensor {name!r} can't be copied"):
                    copies[name].copy_(state[name])
        return placed

    def _grow(self, size_bytes: int) -> mmap.mmap:
        if self.mapped is None or len(self.mapped) < size_bytes:
            missing = size_bytes - (len(self.mapped) if self.mapped else 0)
            if missing > (available := available_bytes()):
                raise CheckpointError(
                    f"a copy of the state takes {size(missing)} of memory, and {size(available)} are available: save "
                    "without a copy, or leave more memory free"
                )
            os.ftruncate(self.descriptor, size_bytes)
            self.mapped = map_memory(self.descriptor, size_bytes)  # the earlier mapping goes with its last tensor
        return self.mapped

    def close(self) -> None:
        """Give the memory back, once nobody uses its tensors any more."""
        self.mapped = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def map_memory(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Map the memory of a snapshot, with all its pages."""
    memory = mmap.mmap(descriptor, size_bytes)
    direct_io.prefault(memory)
    return memory
