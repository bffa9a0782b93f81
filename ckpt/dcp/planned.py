"""A save that is planned now, by the thread that has the tensors, and carried out later, with copies of them.

    planner = PlannedSave(tensors, is_coordinator=True)     # now
    writer = PlannedWriter(directory, apart)                # later
    state_dict_saver.save({}, storage_writer=writer, planner=planner, ...)

`apart` calls what writes this rank's files, in another process perhaps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from ckpt.dcp.files_writer import FilesWriter, WriteOptions, write_files
from ckpt.state.layout import State

Apart = Callable[[Callable[[State], Any]], Any]
"""Calls a function with a planner's data, or in another process with a copy of them; returns what that returned."""


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
        return self.data[self.key_of(index)]

    def key_of(self, index: MetadataIndex) -> str:
        """Return the name of an item's data."""
        return self._key_of[index]


class PlannedWriter(FilesWriter):
    """Writes the files of a `PlannedSave`.

    Args:
        path: a directory that exists, is the same for all ranks, and was empty.
        apart: calls what writes this rank's files with the planner's data.
    """

    def __init__(self, path: Path, apart: Apart) -> None:
        super().__init__(path, WriteOptions())
        self._apart = apart

    def _write_files(self, directory: Path, plan: SavePlan, planner: SavePlanner, *, sync: bool) -> list[WriteResult]:
        assert isinstance(planner, PlannedSave)
        write = partial(
            _write,
            directory=directory,
            prefix=plan.storage_data.prefix,
            items=[(item, planner.key_of(item.index)) for item in plan.items],
            options=self._options,
            sync=sync,
        )
        written: list[WriteResult] = self._apart(write)
        return written


def _write(
    data: State,
    *,
    directory: Path,
    prefix: str,
    items: Sequence[tuple[WriteItem, str]],
    options: WriteOptions,
    sync: bool,
) -> list[WriteResult]:
    return write_files(directory, prefix, [(item, data[key]) for item, key in items], options, sync=sync)
