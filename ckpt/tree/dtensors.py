"""DTensors in a state: tensors of which every rank holds a shard, as FSDP2 and tensor parallelism make them.

No function here imports torch.distributed.tensor, which takes seconds: without that import there are no DTensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from ckpt.errors import CheckpointError
from ckpt.state import dtypes, ties
from ckpt.tree import containers, converters


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor."""
    return isinstance(value, getattr(_module(), "DTensor", ()))


def _module() -> Any:
    return sys.modules.get("torch.distributed.tensor")


def are_in(state: Any) -> bool:
    """Return whether a nested state contains DTensors."""
    left = [state] if _module() else []
    seen: dict[int, Any] = {}  # with the values, since a converter's result would give its id to the next one
    while left:
        value = left.pop()
        if is_dtensor(value):
            return True
        if id(value) not in seen:
            seen[id(value)] = value
            left += _inside(value)
    return False


def _inside(value: Any) -> list[Any]:
    """Return what a container holds; nothing for any other value."""
    kind = type(value)
    if kind in converters.of_type:
        try:
            return [converters.of_type[kind].to_plain(value)]
        except Exception:  # noqa: BLE001  # whatever the user's code raises, saving the state reports it
            return []
    if kind in containers.OF_NAMESPACES:
        return list(vars(value).values())
    if kind in containers.TYPES:
        return list(value.values() if isinstance(value, dict) else value)
    return []


def among(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the DTensors among the tensors of a flat state."""
    return {name: tensor for name, tensor in tensors.items() if is_dtensor(tensor)}


def take(tensor: Any, where: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the DTensor to store, which shares the memory, and what a load needs beside its values.

    Raises:
        CheckpointError: if its shard is not a plain tensor with memory, or the ranks' values are still to be summed.
    """
    stored = tensor.detach()
    shard = stored.to_local()
    dtypes.require_plain(shard, f"the shard of {where}")
    try:
        dtypes.name_of(shard)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if any(placement.is_partial() for placement in tensor.placements):
        raise CheckpointError(
            f"{where} is a DTensor with the placements {tensor.placements}, whose values are still to be reduced over "
            "the ranks: call `.redistribute` with Shard or Replicate before saving it"
        )
    if ties.span_bytes(shard) + shard.storage_offset() * shard.itemsize > shard.untyped_storage().nbytes():
        raise CheckpointError(f"{where} has no memory: it was freed, as FSDP does between uses")
    note = {"parameter": True} if isinstance(tensor, torch.nn.Parameter) else {}
    return stored, note | ({"requires_grad": True} if tensor.requires_grad else {})


def tied(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Find the DTensors whose shards on this rank are tied to an earlier one's; returns that one's name by their names.

    Empty shards that were cut from the same storage count as tied: another rank may hold the elements.
    """
    first: dict[tuple[Any, ...], str] = {}
    owners = {name: first.setdefault(identity(tensor), name) for name, tensor in tensors.items()}
    return {name: owner for name, owner in owners.items() if owner != name}


def identity(tensor: Any) -> tuple[Any, ...]:
    """Return a key that is equal for DTensors whose shards on this rank are tied; it holds while they are alive."""
    shard = tensor.to_local()
    memory = shard.untyped_storage()._cdata, shard.storage_offset()  # noqa: SLF001  # an empty storage has no address
    return *memory, shard.shape, shard.stride(), tensor.shape, tensor.dtype, tensor.placements, tensor.device_mesh
