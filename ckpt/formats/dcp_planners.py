"""DCP planners for tensors that are rows of larger ones.

DTensor would divide a tensor by its own rules, over all ranks of a mesh; these planners use the rows of a partition.
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


def chunk_of(shard: Shard) -> ChunkStorageMetadata:
    """Describe a shard as DCP's chunk of the whole tensor."""
    shape = shard.layout.shape
    offsets = (shard.start, *(0 for _ in shape[1:])) if shape else ()
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))


def index_of(shard: Shard) -> MetadataIndex:
    """Return DCP's index of a shard."""
    return MetadataIndex(shard.whole.name, chunk_of(shard).offsets)


class SavePlanner(DefaultSavePlanner):
    """Saves the tensors of a state dict as these shards of larger ones."""

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        super().__init__(flatten_state_dict=False)
        self._shards = shards

    def create_local_plan(self) -> SavePlan:
        """Plan an item per shard."""
        self.plan = SavePlan([self._item(shard) for shard in self._shards])
        return self.plan

    def _item(self, shard: Shard) -> WriteItem:
        properties = TensorProperties.create_from_tensor(self.state_dict[shard.whole.name])
        data = TensorWriteData(chunk_of(shard), properties, torch.Size(shard.whole.shape))
        return WriteItem(index_of(shard), WriteItemType.SHARD, tensor_data=data)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return the tensor that has an item's rows."""
        return self.state_dict[index.fqn]


class LoadPlanner(DefaultLoadPlanner):
    """Loads these shards of what was saved into the tensors of a state dict."""

    def __init__(self, shards: tuple[Shard, ...]) -> None:
        super().__init__(flatten_state_dict=False)
        self._shards = shards

    def create_local_plan(self) -> LoadPlan:
        """Plan an item per saved fragment of a shard.

        Raises:
            CheckpointError: if a fragment was not saved, or the checkpoint has another tensor of that name.
        """
        assert self.metadata is not None
        items = []
        for shard in self._shards:
            name = shard.whole.name
            saved = self.metadata.state_dict_metadata.get(name)
            if not isinstance(saved, TensorStorageMetadata):
                raise CheckpointError(f"the checkpoint has no tensor {name!r}")
            dtype = str(saved.properties.dtype).removeprefix("torch.")
            if (tuple(saved.size), dtype) != (shard.whole.shape, shard.whole.dtype):
                raise CheckpointError(
                    f"tensor {name!r} is {dtype} {list(saved.size)} in the checkpoint, expected {shard.whole.dtype} "
                    f"{list(shard.whole.shape)}"
                )
            reads = create_read_items_for_chunk_list(name, saved, [chunk_of(shard)])
            if sum(read.lengths.numel() for read in reads) != shard.layout.elements:
                raise CheckpointError(f"the checkpoint lacks rows {shard.start} to {shard.stop} of tensor {name!r}")
            items += reads
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """Return the tensor that an item's rows are copied into."""
        tensor: torch.Tensor = self.state_dict[index.fqn]
        return tensor
