"""Finds tensors that share memory: tied weights, and slices of larger tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt.state.dtypes import require_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that is equal exactly for tied tensors: device, address, dtype, shape and strides.

    It holds only while the tensors are alive. A tensor without memory (empty, or on `meta`) is tied to none.

    Raises:
        CheckpointError: if the tensor is of a subclass of torch.Tensor.
    """
    require_plain(tensor)
    address = tensor.data_ptr() if tensor.numel() else 0
    memory = (tensor.device, address) if address else id(tensor)
    return memory, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()


def tied(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
    """Find the tensors that are tied to an earlier one.

    Returns:
        By the name of each such tensor, the name of the earlier one and the position of its own name, from 0.

    Raises:
        CheckpointError: if a tensor is of a subclass of torch.Tensor.
    """
    first: dict[tuple[Any, ...], str] = {}
    ties: dict[str, tuple[str, int]] = {}
    for position, (name, tensor) in enumerate(state.items()):
        require_plain(tensor, f"tensor {name!r}")
        owner = first.setdefault(identity(tensor), name)
        if owner != name:
            ties[name] = (owner, position)
    return ties


def span_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element in memory to its last, both included."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def owning(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state with tensors that don't share a larger storage, for writers that write whole storages.

    Slices of larger tensors are copied to the CPU, all at once; tied tensors stay tied.

    Raises:
        CheckpointError: if a tensor is of a subclass of torch.Tensor.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        require_plain(tensor, f"tensor {name!r}")
        tensors[name] = tensor
        if tensor.untyped_storage().nbytes() > span_bytes(tensor) or span_bytes(tensor) > tensor.nbytes:
            key = identity(tensor)
            if key not in copies:
                copies[key] = tensor.detach().to("cpu", copy=True)
            tensors[name] = copies[key]
    return tensors
