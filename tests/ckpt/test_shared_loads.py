"""Loads into states with DTensors, by all ranks together, whatever number of ranks or single process saved them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.errors import CheckpointError
from support import shared_states
from support.gloo_ranks import GlooRanks


@pytest.fixture(scope="module")
def ranks() -> Iterator[GlooRanks]:
    """Processes that are ranks."""
    with GlooRanks() as started:
        yield started


def error_on_all(results: list[Any]) -> str:
    """The message of the error that every rank raised."""
    assert {CheckpointError} == {type(result) for result in results}, results
    (message,) = {str(result) for result in results}
    return message


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 3), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_loaded_on_any_number_of_ranks(ranks: GlooRanks, saved_by: int, loaded_by: int, tmp_path: Path) -> None:
    """Every rank gets the shards of its own mesh in the tensors that it has, and the plain values."""
    ranks(shared_states.save, saved_by, tmp_path / "latest", 1)
    for loaded in ranks(shared_states.load, loaded_by, tmp_path / "latest", 1):
        assert [True] * 10 == loaded


@pytest.mark.parametrize("strategy", ["safetensors_tuned", "torch_dcp"])
@pytest.mark.parametrize("verify", [True, False])
def test_saved_by_one_process(ranks: GlooRanks, strategy: str, verify: bool, tmp_path: Path) -> None:
    """A training on several ranks can begin with what one process saved, by any strategy that loads in place."""
    ranks(shared_states.save, 1, tmp_path / "latest", 1)
    ckpt.convert(tmp_path / "latest", tmp_path / "other", strategy)
    for loaded in ranks(shared_states.load, 2, tmp_path / "other", 1, verify):
        assert [True] * 10 == loaded


def test_meshes_of_two_dimensions(ranks: GlooRanks, tmp_path: Path) -> None:
    """A state on such a mesh is filled from what ranks on another one saved."""
    ranks(shared_states.save_grid, 4, tmp_path / "grid", 1)
    assert [True] * 4 == ranks(shared_states.load_grid, 4, tmp_path / "grid", 1)


@pytest.mark.parametrize(
    ("name", "message"), [("norm", r"'model.norm' is float32 \[9\]"), ("other", "the checkpoint lacks 'model.other'")]
)
def test_another_shape_or_name(ranks: GlooRanks, name: str, message: str, tmp_path: Path) -> None:
    """All ranks get the error, before any tensor is changed."""
    ranks(shared_states.save, 2, tmp_path / "latest", 1)
    with pytest.raises(CheckpointError, match=message):
        raise ranks(shared_states.load_with, 2, tmp_path / "latest", name, torch.ones(9))[0]


def test_a_damaged_shard(ranks: GlooRanks, tmp_path: Path) -> None:
    """One changed bit in one rank's file is an error on all ranks, which names the rank that read it; in one process,
    too, unless nothing is to be verified.
    """
    ranks(shared_states.save, 2, tmp_path / "latest", 1)
    path = tmp_path / "latest" / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    values = shared_states.whole(1)["embed"][4:].numpy().tobytes()
    content[content.index(values)] ^= 1
    path.write_bytes(content)
    message = error_on_all(ranks(shared_states.load, 2, tmp_path / "latest", 1))
    assert message.startswith("rank 1: ")
    assert "'model.embed' is not what was written" in message
    with pytest.raises(CheckpointError, match=r"'model\.embed' is not what was written"):
        ckpt.load(tmp_path / "latest")
    loaded = ckpt.load(tmp_path / "latest", verify=False)["model"]["embed"]
    assert [True] * 4 == [torch.equal(loaded[row], shared_states.whole(1)["embed"][row]) for row in range(4)]
    assert not torch.equal(loaded, shared_states.whole(1)["embed"])


def test_a_rank_that_saves_while_another_loads(ranks: GlooRanks, tmp_path: Path) -> None:
    """Both calls are in the message."""
    path = tmp_path / "latest"
    ranks(shared_states.save, 2, path, 1)
    message = error_on_all(ranks(shared_states.save_on_rank_0_and_load, 2, path))
    assert f"rank 0 called ckpt.save with {path}, and rank 1 called ckpt.load with {path}" in message


def test_replaced_while_ranks_load(ranks: GlooRanks, tmp_path: Path) -> None:
    """No rank goes on with another checkpoint than the others."""
    ranks(shared_states.save, 2, tmp_path / "latest", 1)
    ranks(shared_states.save, 2, tmp_path / "next", 1)
    message = error_on_all(ranks(shared_states.load_while_it_is_replaced, 2, tmp_path / "latest", tmp_path / "next"))
    assert "was replaced by another save while the ranks were loading it" in message
