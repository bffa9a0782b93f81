"""Fills the shards of DTensors that exist, whatever shards were saved; no rank waits for another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from ckpt.dcp.reader import DirectReader
from ckpt.errors import wrapped
from ckpt.formats import dcp_errors


def fill(directory: Path, targets: Mapping[str, Any], *, verify: bool) -> None:
    """Read the shards that this rank holds from a checkpoint of DCP.

    Args:
        directory: the checkpoint.
        targets: the DTensors by DCP's keys, of the stored shapes.
        verify: compare the checksums that `DirectWriter` stored, for which whole stored shards are read.

    Raises:
        CheckpointError: if the checkpoint is damaged or lacks a tensor.
    """
    with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
        state_dict_loader.load(
            dict(targets),
            storage_reader=DirectReader(directory, verify=verify),
            planner=DefaultLoadPlanner(flatten_state_dict=False),
            no_dist=True,
        )


def copy_shard(target: Any, whole: torch.Tensor) -> None:
    """Copy the shard that this rank holds from the whole tensor."""
    if target.device_mesh.get_coordinate() is None:  # the mesh is of other ranks
        return
    (chunk,) = target.__create_chunk_list__()
    rows = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
    target.to_local().copy_(whole[rows])
