"""The layout of a state: its tensors' names, shapes and dtypes. Needs no torch, so that plans can count bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ckpt.state.dtypes import BYTES_PER_ELEMENT, name_of
from ckpt.state.ties import tied

if TYPE_CHECKING:
    import torch

State: TypeAlias = "dict[str, torch.Tensor]"
"""Named tensors, in `state_dict` order."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Describes one named tensor of a state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    same_as: str | None = None
    """The earlier tensor whose memory this one shares (tied weights)."""

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The logical size in bytes, whether the memory is shared or not."""
        return self.elements * BYTES_PER_ELEMENT[self.dtype]

    @property
    def owner(self) -> str:
        """The name of the tensor that owns the memory: this one, or the earlier one. A name may be empty."""
        return self.name if self.same_as is None else self.same_as


Layout = tuple[TensorLayout, ...]


def layout_of_state(state: Mapping[str, torch.Tensor]) -> Layout:
    """Return the layout of an existing state; tensors that share memory are tied."""
    shared = tied(state)
    return tuple(
        TensorLayout(name, tuple(tensor.shape), name_of(tensor), shared[name][0] if name in shared else None)
        for name, tensor in state.items()
    )


def state_bytes(layout: Layout) -> int:
    """Return the logical size of a state in bytes; tied weights count once."""
    return sum(tensor.size_bytes for tensor in layout if tensor.same_as is None)


def parameters(layout: Layout) -> int:
    """Return the number of elements of a state; tied weights count once."""
    return sum(tensor.elements for tensor in layout if tensor.same_as is None)
