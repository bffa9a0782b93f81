"""Tensors that share memory: tied weights, and slices of larger tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt.state.dtypes import require_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tied tensors have in common, and no others while both are alive: their memory and how it is seen.

    What has no memory of its own — an empty tensor, one on `meta`, a subclass that wraps others — is tied to nothing.

    Raises:
        CheckpointError: for a subclass of torch.Tensor.
    """
    require_plain(tensor)
    address = tensor.data_ptr() if tensor.numel() else 0
    memory = (tensor.device, address) if address else id(tensor)
    return memory, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()


def tied(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
    """The names whose tensor is an earlier one's memory again: that one's name, and their own place, from 0.

    Raises:
        CheckpointError: if one is of a subclass of torch.Tensor.
    """
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, tuple[str, int]] = {}
    for place, (name, tensor) in enumerate(state.items()):
        require_plain(tensor, f"tensor {name!r}")
        owner = first.setdefault(identity(tensor), name)
        if owner != name:
            found[name] = (owner, place)
    return found


def span_bytes(tensor: torch.Tensor) -> int:
    """The memory from a tensor's first element to its last, both included, in bytes."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def owning(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state, in tensors whose storage is theirs alone; for writers that take whole storages.

    A slice of a larger tensor is copied, to the CPU; all copies are in memory together. Tied ones stay tied.

    Raises:
        CheckpointError: if one is of a subclass of torch.Tensor.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        require_plain(tensor, f"tensor {name!r}")
        own = tensor
        if tensor.untyped_storage().nbytes() > span_bytes(tensor) or span_bytes(tensor) > tensor.nbytes:
            seen = identity(tensor)
            own = copies[seen] if seen in copies else tensor.detach().to("cpu", copy=True)
            copies[seen] = own
        found[name] = own
    return found
