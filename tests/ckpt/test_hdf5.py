"""What `hdf5` writes where several ranks save together: whole tensors to any reader, and no zeros for what is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.process_group.group import SingleProcess
from ckpt.state import compare
from ckpt.state.sharding import RankShards, Sharding
from ckpt.strategies.hdf5 import Hdf5

CHUNKED = Hdf5(layout="chunked", chunk_mib=1)


@pytest.mark.parametrize("strategy", [Hdf5(), CHUNKED], ids=["contiguous", "chunked"])
@pytest.mark.parametrize("sharding", ["dim0", "tensors", "replicated"])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_kind_of_tensor(together: Any, strategy: Hdf5, sharding: Sharding, ranks: int, tmp_path: Path) -> None:
    """What each rank saved comes back, in one process as well; no more is written than was planned."""
    partition = together.partition(sharding, ranks)
    files = [file for each in together.save(strategy, tmp_path, partition) for file in each]
    assert sorted(files) == sorted(tmp_path.iterdir())
    planned, found = strategy.footprint(partition), listing.inventory(tmp_path)
    assert planned.file_count == found.file_count
    assert planned.size_bytes >= found.apparent_bytes
    together.load(strategy, tmp_path, partition, ranks)
    loaded = strategy.load(tmp_path)
    assert compare.first_difference(together.state, loaded) is None
    assert list(together.state) == list(loaded)
    assert loaded["tied"] is loaded["odd%/name"]


@pytest.mark.parametrize("sharding", ["dim0", "tensors"])
def test_any_reader_sees_whole_tensors(
    together: Any, sharding: Sharding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h5py finds each array as a whole in the one file, from wherever it is opened, and after the directory moved."""
    before, after, elsewhere = tmp_path / "before", tmp_path / "after", tmp_path / "elsewhere"
    before.mkdir()
    elsewhere.mkdir()
    together.save(Hdf5(), before, together.partition(sharding, 4))
    before.rename(after)
    monkeypatch.chdir(elsewhere)
    with h5py.File(os.path.relpath(after / "state.h5"), "r") as file:
        for name, tensor in together.state.items():
            if tensor.dtype in {torch.float32, torch.int64, torch.complex64, torch.bool}:
                found = file[filenames.to_filename(name)][()]
                assert (tensor.numpy().tobytes(), tuple(tensor.shape)) == (found.tobytes(), found.shape), name


@pytest.mark.parametrize("sharding", ["dim0", "tensors", "replicated"])
@pytest.mark.parametrize(("saved", "loaded"), [(4, 2), (2, 3), (3, 1), (1, 3)])
def test_another_number_of_ranks(together: Any, saved: int, loaded: int, sharding: Sharding, tmp_path: Path) -> None:
    """Any number of ranks loads what any number saved."""
    partition = together.partition(sharding, saved)
    together.save(CHUNKED, tmp_path, partition)
    together.load(CHUNKED, tmp_path, partition, loaded)


@pytest.mark.parametrize("sharding", ["dim0", "tensors"])
@pytest.mark.parametrize("damage", ["lost", "empty", "another rank's"])
def test_a_loss_is_no_zeros(together: Any, sharding: Sharding, damage: str, tmp_path: Path) -> None:
    """HDF5 shows zeros where a file is missing; a load says which one it is, by the ranks and in one process."""
    partition = together.partition(sharding, 5)
    together.save(Hdf5(), tmp_path, partition)
    path = tmp_path / "state-00001-of-00005.h5"
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "another rank's":
        path.write_bytes((tmp_path / "state-00004-of-00005.h5").read_bytes())
    if sharding == "dim0" and damage == "lost":
        with h5py.File(tmp_path / "state.h5", "r") as file:
            assert together.state["3.bool"][7:14].any()
            assert not file["3.bool"][7:14].any()
    with pytest.raises(CheckpointError, match=path.name):
        Hdf5().read(tmp_path, RankShards(partition, 1).wanted, partition, SingleProcess())
    with pytest.raises(CheckpointError, match=r"state-00001-of-00005|state\.h5"):
        Hdf5().load(tmp_path)
    Hdf5().read(tmp_path, RankShards(partition, 2).wanted, partition, SingleProcess())


def test_the_joint_file_is_part_of_it(together: Any, tmp_path: Path) -> None:
    """Without it no other reader sees the tensors: the checkpoint is incomplete."""
    partition = together.partition("dim0", 2)
    together.save(Hdf5(), tmp_path, partition)
    (tmp_path / "state.h5").unlink()
    with pytest.raises(CheckpointError, match=r"it lacks state\.h5"):
        Hdf5().read(tmp_path, RankShards(partition, 1).wanted, partition, SingleProcess())


def test_a_file_with_other_rows(tmp_path: Path, together: Any) -> None:
    """A file that was put in another's place is found out."""
    partition = together.partition("dim0", 5)
    together.save(Hdf5(), tmp_path, partition)
    (tmp_path / "state-00001-of-00005.h5").write_bytes((tmp_path / "state-00003-of-00005.h5").read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another checkpoint: of tensor"):
        Hdf5().read(tmp_path, RankShards(partition, 1).wanted, partition, SingleProcess())
