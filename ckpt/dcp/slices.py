"""Which bytes of a file hold a slice of a stored tensor, and the slice as a view of these bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ckpt.formats.dcp_entries import Stored


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of a stored tensor: the box of these lengths that begins at these offsets, one per dimension."""

    stored: Stored
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.lengths == self.stored.shape

    @property
    def is_dense(self) -> bool:
        """Whether the file has its elements, and no others, one after the other in their order."""
        if not math.prod(self.lengths):
            return True
        expected = 1
        for length, stride in zip(reversed(self.lengths), reversed(self.stored.strides), strict=True):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True

    @property
    def offset(self) -> int:
        """Where its first element is in the file."""
        first = sum(offset * stride for offset, stride in zip(self.offsets, self.stored.strides, strict=True))
        return self.stored.offset + first * self.stored.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """The bytes from its first to its last element, with others between them if it isn't dense."""
        if not math.prod(self.lengths):
            return 0
        steps = sum((length - 1) * stride for length, stride in zip(self.lengths, self.stored.strides, strict=True))
        return (steps + 1) * self.stored.dtype.itemsize

    def view(self, content: torch.Tensor) -> torch.Tensor:
        """Return the slice as a view of its bytes, which were read into a tensor of uint8."""
        if not content.numel():
            return torch.empty(self.lengths, dtype=self.stored.dtype)
        return content.view(self.stored.dtype).as_strided(self.lengths, self.stored.strides)

    def whole(self) -> Slice:
        """Return all of the tensor."""
        return Slice(self.stored, (0,) * len(self.stored.shape), self.stored.shape)
