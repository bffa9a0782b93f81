"""The ranks that train one model together, as a callback sees them."""

from __future__ import annotations

import os
from typing import TypeVar

import torch.distributed as dist

from ckpt.errors import CheckpointError

_T = TypeVar("_T")


class Ranks:
    """The ranks of torch.distributed's default process group, or this process alone.

    They exchange messages over a gloo group of their own, so that no step waits for a GPU. All ranks make it, and call
    its methods, in the same order.

    Attributes:
        number: this process's, from 0.

    Raises:
        CheckpointError: if other ranks were started, and this process hasn't joined their process group yet.
    """

    def __init__(self) -> None:
        is_joined = dist.is_available() and dist.is_initialized()
        if not is_joined and os.environ.get("WORLD_SIZE", "1") != "1":
            raise CheckpointError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this process is in no process group yet: make the "
                "Trainer before you call this"
            )
        self.number = dist.get_rank() if is_joined else 0
        self._size = dist.get_world_size() if is_joined else 1
        self._group = dist.new_group(backend="gloo") if self._size > 1 else None

    def first(self, value: _T) -> _T:
        """Return rank 0's value on every rank."""
        values = [value]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def all(self, value: _T) -> list[_T]:
        """Return the values of all ranks, in the order of the ranks."""
        values = [value] * self._size
        if self._group is not None:
            dist.all_gather_object(values, value, group=self._group)
        return values
