"""The tensors of a state: names, shapes, dtypes, bytes; known without torch, so that a plan can count."""

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
    """One named tensor of a state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    same_as: str | None = None
    """The earlier tensor whose memory this one shares (tied weights)."""

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Logical size, whether the memory is shared or not."""
        return self.elements * BYTES_PER_ELEMENT[self.dtype]

    @property
    def owner(self) -> str:
        """The name of the tensor whose memory it is: its own, or the earlier one's, which may be empty."""
        return self.name if self.same_as is None else self.same_as


Layout = tuple[TensorLayout, ...]


def layout_of_state(state: Mapping[str, torch.Tensor]) -> Layout:
    """The tensors of a state that exists; tied are those that share memory."""
    shared = tied(state)
    return tuple(
        TensorLayout(name, tuple(tensor.shape), name_of(tensor), shared[name][0] if name in shared else None)
        for name, tensor in state.items()
    )


def state_bytes(layout: Layout) -> int:
    """Logical size of a state: every tensor once, tied weights not twice."""
    return sum(tensor.size_bytes for tensor in layout if tensor.same_as is None)


def parameters(layout: Layout) -> int:
    """Number of elements of a state, tied weights counted once."""
    return sum(tensor.elements for tensor in layout if tensor.same_as is None)
