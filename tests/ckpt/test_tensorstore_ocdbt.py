"""tensorstore_ocdbt: how the databases of several ranks become one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist

from ckpt.process_group.store_group import StoreGroup
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies.tensorstore_ocdbt import TensorstoreOcdbt

MIB = 2**20


def save_together(values: torch.Tensor, partition: Partition, directory: Path) -> list[list[Path]]:
    """Save one tensor, `w`, by as many threads as there are ranks."""
    store = dist.HashStore()
    members = [(rank, f"host-{rank}") for rank in range(partition.count)]

    def save(rank: int) -> list[Path]:
        part = RankShards(partition, rank)
        state = {each.whole.name: values[each.start : each.stop] for each in part.owned}
        ranks = StoreGroup(store, members, rank, 60, "all")
        return TensorstoreOcdbt().write(state, directory, part, ranks)

    with ThreadPoolExecutor(partition.count) as pool:
        return list(pool.map(save, range(partition.count)))


def test_no_data_is_copied(tmp_path: Path) -> None:
    """The database of all has a tree of its own, and no more: the data stays in the files of who wrote it."""
    values = torch.arange(MIB // 2, dtype=torch.int64).reshape(4, -1)
    files = save_together(values, Partition.of((TensorLayout("w", (4, MIB // 8), "int64"),), "dim0", 4), tmp_path)
    bytes_of = [sum(file.stat().st_size for file in each if "rank-" in str(file)) for each in files]
    assert [True] * 4 == [MIB < found < MIB + 10_000 for found in bytes_of]
    assert sum(file.stat().st_size for file in files[0] if "rank-" not in str(file)) < 10_000


def test_the_directory_may_be_renamed(tmp_path: Path) -> None:
    """The database finds the ranks' files wherever the whole lies: a commit renames it."""
    values = torch.randn(5, 1000)
    written, renamed = tmp_path / "written", tmp_path / "renamed"
    written.mkdir()
    save_together(values, Partition.of((TensorLayout("w", (5, 1000), "float32"),), "dim0", 3), written)
    written.rename(renamed)
    assert torch.equal(values, TensorstoreOcdbt().load(renamed)["w"])


def test_a_rank_without_anything(tmp_path: Path) -> None:
    """Where there are fewer tensors than ranks, some have nothing to write, and nothing is missing."""
    values = torch.randn(3, 2)
    partition = Partition.of((TensorLayout("w", (3, 2), "float32"),), "tensors", 3)
    save_together(values, partition, tmp_path)
    assert [1, 0, 0] == [len(partition.owned(rank)) for rank in range(3)]
    assert torch.equal(values, TensorstoreOcdbt().load(tmp_path)["w"])
