"""How DCP is told of rows: planners for tensors that are parts of larger ones.

DTensor would divide a tensor by its own rules, over all ranks of a mesh; here the rows are those of a partition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ckpt.errors import CheckpointError
from ckpt.state.sharding import Shard


def chunk_of(rows: Shard) -> ChunkStorageMetadata:
    """Where the rows lie in the whole tensor."""
    shape = rows.layout.shape
    offsets = (rows.start, *(0 for _ in shape[1:])) if shape else ()
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))


def index_of(rows: Shard) -> MetadataIndex:
    """What DCP calls them."""
    return MetadataIndex(rows.whole.name, chunk_of(rows).offsets)


class SavePlanner(DefaultSavePlanner):
    """Saves the tensors of a state dict as these rows of larger ones."""

    def __init__(self, share: tuple[Shard, ...]) -> None:
        super().__init__(flatten_state_dict=False)
        self._share = share

    def create_local_plan(self) -> SavePlan:
        """An item for each slice."""
        self.plan = SavePlan([self._item(each) for each in self._share])
        return self.plan

    def _item(self, rows: Shard) -> WriteItem:
        properties = TensorProperties.create_from_tensor(self.state_dict[rows.whole.name])
        data = TensorWriteData(chunk_of(rows), properties, torch.Size(rows.whole.shape))
        return WriteItem(index_of(rows), WriteItemType.SHARD, tensor_data=data)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The tensor that has an item's rows."""
        return self.state_dict[index.fqn]


class LoadPlanner(DefaultLoadPlanner):
    """Loads these rows of what was saved into the tensors of a state dict."""

    def __init__(self, share: tuple[Shard, ...]) -> None:
        super().__init__(flatten_state_dict=False)
        self._share = share

    def create_local_plan(self) -> LoadPlan:
        """An item for each fragment that was saved of a slice.

        Raises:
            CheckpointError: if a part was not saved, or the checkpoint has another tensor of that name.
        """
        assert self.metadata is not None
        items = []
        for each in self._share:
            name, wanted = each.whole.name, each.layout
            found = self.metadata.state_dict_metadata.get(name)
            if not isinstance(found, TensorStorageMetadata):
                raise CheckpointError(f"the checkpoint has no tensor {name!r}")
            dtype = str(found.properties.dtype).removeprefix("torch.")
            if (tuple(found.size), dtype) != (each.whole.shape, each.whole.dtype):
                raise CheckpointError(
                    f"tensor {name!r} is {dtype} {list(found.size)} in the checkpoint, expected {each.whole.dtype} "
                    f"{list(each.whole.shape)}"
                )
            reads = create_read_items_for_chunk_list(name, found, [chunk_of(each)])
            if sum(read.lengths.numel() for read in reads) != wanted.elements:
                raise CheckpointError(f"the checkpoint lacks rows {each.start} to {each.stop} of tensor {name!r}")
            items += reads
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """The tensor that an item's rows are copied into."""
        tensor: torch.Tensor = self.state_dict[index.fqn]
        return tensor
