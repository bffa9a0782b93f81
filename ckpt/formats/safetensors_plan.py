"""What a safetensors checkpoint consists of: the tensors of every file, the index, and how much that is at most."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckpt.formats import safetensors_header, shard_files
from ckpt.formats.safetensors_files import shard_name
from ckpt.formats.safetensors_metadata import TensorInfo, Tied, stored_name
from ckpt.state.layout import TensorLayout, parameters, state_bytes
from ckpt.state.sharding import Partition, RankShards, Shard

MIB = 2**20

_ROWS_FILE = "rows-in-each-of-{:05d}-files.safetensors"
"""The file that an index names for tensors that are in no file as a whole. It doesn't exist: a program that reads whole
tensors fails with its name, instead of taking a part for the whole."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """What one file gets: the tensors, without their offsets, and the tied names of them."""

    tensors: Sequence[TensorInfo]
    tied: Tied


def plan_files(
    shards: RankShards, shard_mib: int, as_pairs: Collection[str] = ("complex128",)
) -> dict[str, FileContent]:
    """Plan the files that a rank writes: one, or for a single process as many as `shard_mib` asks for.

    Args:
        shards: what the rank owns.
        shard_mib: the most that a file holds, in MiB, unless one tensor is larger; 0 for a single file.
        as_pairs: the dtypes to store as pairs of real numbers.
    """
    partition = shards.partition
    index_of = {tensor.name: index for index, tensor in enumerate(partition.layout)}
    tied: dict[str, dict[str, tuple[str, int]]] = {}
    for shard in shards.owned:
        name, owner = shard.whole.name, shard.whole.same_as
        if owner is not None:
            tied.setdefault(owner, {})[name] = owner, index_of[name]
    groups = split([shard for shard in shards.owned if shard.whole.same_as is None], shard_mib * MIB)
    count, first = (len(groups), 0) if partition.count == 1 else (partition.count, shards.rank)
    files = {}
    for number, group in enumerate(groups, first):
        tensors = [
            TensorInfo(
                shard.layout,
                index_of[shard.whole.name],
                shard_files.row_range(shard),
                shard.whole.dtype in as_pairs,
            )
            for shard in group
        ]
        files[shard_name(number, count)] = FileContent(
            tensors, {name: owner for shard in group for name, owner in tied.get(shard.whole.name, {}).items()}
        )
    return files


def split(shards: Sequence[Shard], shard_bytes: int) -> list[list[Shard]]:
    """Divide tensors into files of at most that many bytes, as transformers does: in order, but larger ones alone.

    Returns:
        At least one file; a single one if `shard_bytes` is 0.
    """
    if not shard_bytes:
        return [list(shards)]
    files: list[list[Shard]] = []
    current: list[Shard] = []
    current_bytes = 0
    for shard in shards:
        size_bytes = shard.layout.size_bytes
        if size_bytes > shard_bytes:
            files.append([shard])
            continue
        if current_bytes + size_bytes > shard_bytes:
            files.append(current)
            current, current_bytes = [], 0
        current.append(shard)
        current_bytes += size_bytes
    return [*files, current] if current or not files else files


def footprint(partition: Partition, shard_mib: int) -> tuple[int, int]:
    """Return the most files and bytes that the ranks of a partition write: a file per rank, or shards, and the index.

    Raises:
        CheckpointError: if several ranks are to write shards.
    """
    shard_files.refuse_shards(shard_mib, partition)
    if partition.count == 1:
        owners = [shard for shard in partition.owned(0) if shard.whole.same_as is None]
        file_count = len(split(owners, shard_mib * MIB))
    else:
        file_count = partition.count
    if file_count > 1:
        file_count += 1
    copies = 1 if partition.sharding != "dim0" else partition.count  # of the metadata: every file may have every tensor
    headers = safetensors_header.footprint_bytes(partition.layout, 0) * copies
    size_bytes = state_bytes(partition.layout) + headers + safetensors_header.footprint_bytes((), file_count)
    return file_count, size_bytes


def index_bytes(shards: RankShards, files: Mapping[str, FileContent]) -> bytes:
    """Return the index of all files, as transformers writes it; empty if this rank writes none.

    Args:
        shards: the rank's; the first rank writes the index of all ranks' files, which follows from the partition.
        files: those that the rank writes; a single process writes an index if they are several.
    """
    partition = shards.partition
    if shards.rank or (partition.count == 1 and len(files) == 1):
        return b""
    if partition.count == 1:
        layouts = {file: [info.layout for info in content.tensors] for file, content in files.items()}
    else:
        layouts = _files_of_ranks(partition)
    weight_map = {stored_name(tensor.name): file for file, tensors in layouts.items() for tensor in tensors}
    totals = {"total_parameters": parameters(partition.layout), "total_size": state_bytes(partition.layout)}
    return (json.dumps({"metadata": totals, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()


def _files_of_ranks(partition: Partition) -> dict[str, list[TensorLayout]]:
    owners = [tensor for tensor in partition.layout if tensor.same_as is None]
    if partition.sharding == "dim0":
        return {_ROWS_FILE.format(partition.count): owners}
    return {
        shard_name(rank, partition.count): [
            shard.whole for shard in partition.owned(rank) if shard.whole.same_as is None
        ]
        for rank in range(partition.count)
    }
