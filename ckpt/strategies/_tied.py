"""Tied weights: tensors that are one under several names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """What tied tensors have in common, and no others while both are alive: their memory and how it is seen."""
    address = tensor.data_ptr() if tensor.numel() else id(tensor)
    return address, tensor.dtype, tensor.shape, tensor.stride()
