"""A save that is planned now, by the thread that has the tensors, and carried out later, with copies of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan


class PlannedSave(DefaultSavePlanner):
    """DCP's planner, with this rank's part of the plan from the beginning.

    Args:
        tensors: what this rank saves, by name: DTensors, of which it writes its shards, and plain tensors.
        is_coordinator: whether this is rank 0.

    Attributes:
        data: what this rank may have to write, on any device: shards and plain tensors. Give it copies of them before
            the save, if the tensors may change until then.
    """

    def __init__(self, tensors: Mapping[str, Any], *, is_coordinator: bool) -> None:
        super().__init__(flatten_state_dict=False)
        planner = DefaultSavePlanner(flatten_state_dict=False)
        planner.set_up_planner(dict(tensors), is_coordinator=is_coordinator)
        self._local = planner.create_local_plan()
        self._key_of = {item.index: f"{number} {item.index.fqn}" for number, item in enumerate(self._local.items)}
        self.data: dict[str, torch.Tensor] = {
            self._key_of[item.index]: planner.lookup_object(item.index).detach() for item in self._local.items
        }

    def create_local_plan(self) -> SavePlan:
        """Return the plan that was made before; what DCP gives to this planner, it doesn't need."""
        self.plan = self._local
        return self._local

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return the data of an item."""
        return self.data[self._key_of[index]]
