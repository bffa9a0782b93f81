"""What `torch_save` writes where several ranks save together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.state.sharding import Partition, RankShards, Sharding
from ckpt.strategies.torch_save import TorchSave
from support.groups import UnaskedGroup


@pytest.mark.parametrize("sharding", ["dim0", "tensors", "replicated"])
def test_a_file_for_each_rank(together: Any, sharding: Sharding, tmp_path: Path) -> None:
    """Each rank's file is one that `torch.load` reads, and comes back to the rank; nothing else is written."""
    partition = together.partition(sharding, 3)
    files = together.save(TorchSave(), tmp_path, partition)
    assert [[tmp_path / f"state-{rank:05d}-of-00003.pth"] for rank in range(3)] == files
    assert listing.inventory(tmp_path).file_count == 3
    assert [each.whole.name for each in partition.owned(1)] == list(torch.load(files[1][0]))
    together.load(TorchSave(), tmp_path, partition, 3)


def test_one_rank_writes_what_save_writes(together: Any, tmp_path: Path) -> None:
    """A checkpoint of one rank is the one that any process loads."""
    together.save(TorchSave(), tmp_path, together.partition("dim0", 1))
    assert ["state.pth"] == [path.name for path in tmp_path.iterdir()]


def test_another_number_of_ranks(together: Any, tmp_path: Path) -> None:
    """A replicated state loads on any number of ranks; a sharded one is refused, with what to do."""
    saved = together.partition("replicated", 3)
    together.save(TorchSave(), tmp_path, saved)
    together.load(TorchSave(), tmp_path, saved, 2)
    sharded = Partition.of(saved.tensors, "dim0", 3)
    wanted = RankShards(Partition.of(saved.tensors, "dim0", 2), 0).wanted
    with pytest.raises(CheckpointError, match="what 3 ranks saved on 3 ranks only, not on 2: leave `load_ranks` out"):
        TorchSave().read(tmp_path, wanted, sharded, UnaskedGroup(0, 2))


def test_a_file_that_is_missing(together: Any, tmp_path: Path) -> None:
    """A rank whose file was lost says which one."""
    partition = together.partition("dim0", 3)
    together.save(TorchSave(), tmp_path, partition)
    (tmp_path / "state-00001-of-00003.pth").unlink()
    with pytest.raises(CheckpointError, match=r"it has no state-00001-of-00003\.pth"):
        TorchSave().read(tmp_path, RankShards(partition, 1).wanted, partition, UnaskedGroup(1, 3))
