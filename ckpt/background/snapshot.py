"""A snapshot: a copy of a state in memory that is used again for the next one, and that another process can map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt.disk import direct_io
from ckpt.state import dtypes
from ckpt.state.layout import Layout, State, TensorLayout, layout_of_state

if TYPE_CHECKING:
    import torch

_ALIGNMENT = direct_io.ALIGNMENT
"""Of every tensor, so that it can be written from where it lies, past the page cache."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of a snapshot, and where it lies in the memory."""

    layout: TensorLayout
    offset: int
    """In bytes; of a tied tensor, its owner's."""


def place(layout: Layout) -> list[Placed]:
    """Where the tensors of a state lie in a snapshot: one after the other, aligned, tied ones once."""
    offsets: dict[str, int] = {}
    end = 0
    for tensor in layout:
        if tensor.same_as is None:
            offsets[tensor.name] = end
            end += -(-tensor.size_bytes // _ALIGNMENT) * _ALIGNMENT
    return [Placed(tensor, offsets[tensor.owner]) for tensor in layout]


def size_of(placed: Sequence[Placed]) -> int:
    """The bytes of memory that a snapshot takes."""
    return max((tensor.offset + direct_io.round_up(tensor.layout.size_bytes) for tensor in placed), default=0)


def tensors_in(memory: mmap.mmap, placed: Sequence[Placed]) -> State:
    """The tensors of a snapshot, as views of its memory; tied ones are one tensor."""
    owners = {tensor.layout.name: _view(memory, tensor) for tensor in placed if tensor.layout.same_as is None}
    return {tensor.layout.name: owners[tensor.layout.owner] for tensor in placed}


def _view(memory: mmap.mmap, placed: Placed) -> torch.Tensor:
    import torch

    dtype, layout = dtypes.torch_dtype(placed.layout.dtype), placed.layout
    if not layout.elements:
        return torch.empty(layout.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=layout.elements, offset=placed.offset)
    return flat.reshape(layout.shape)


class SnapshotMemory:
    """Memory that holds one snapshot at a time; it grows when a state needs more, and its pages exist already then.

    Attributes:
        descriptor: of the memory, for another process to map.
        memory: as this process has it mapped; None as long as there is none.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("checkpoint-snapshot", os.MFD_CLOEXEC)
        self.memory: mmap.mmap | None = None

    @property
    def size_bytes(self) -> int:
        """How much there is."""
        return len(self.memory) if self.memory is not None else 0

    def reserve(self, size_bytes: int) -> None:
        """Have at least so much memory, touched, so that taking a snapshot waits for no page.

        Raises:
            OSError: if there isn't so much.
        """
        if size_bytes <= self.size_bytes:
            return
        os.ftruncate(self.descriptor, size_bytes)
        self.memory = mmap.mmap(self.descriptor, size_bytes)  # the earlier mapping goes with its last tensor
        with suppress(OSError):  # a kernel without huge pages, or none for shared memory
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        direct_io.prefault(self.memory)

    def take(self, state: State) -> list[Placed]:
        """Copy a state into the memory; returns where its tensors lie. What was there is overwritten."""
        placed = place(layout_of_state(state))
        self.reserve(max(1, size_of(placed)))
        assert self.memory is not None  # reserved
        copies = tensors_in(self.memory, placed)
        for tensor in placed:
            if tensor.layout.same_as is None:
                copies[tensor.layout.name].copy_(state[tensor.layout.name])
        return placed

    def close(self) -> None:
        """Give the memory back, once nobody uses its tensors any more."""
        self.memory = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
