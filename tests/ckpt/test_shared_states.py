"""States with DTensors, which all ranks save together: real ranks, over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.agreement import _ties_of_all
from ckpt.errors import CheckpointError
from support import shared_states
from support.gloo_ranks import GlooRanks
from support.shared_states import BYTES, RANDOM, whole


@pytest.fixture(scope="module")
def ranks() -> Iterator[GlooRanks]:
    """Processes that are ranks."""
    with GlooRanks() as started:
        yield started


def check(path: Path, seed: int) -> None:
    """A process by itself loads the whole state of that seed."""
    state = ckpt.load(path)
    model = state["model"]
    for name, values in whole(seed).items():
        assert type(model[name]) is torch.Tensor
        assert torch.equal(values, model[name]), name
    assert model["head"] is model["embed"]
    assert isinstance(state["parameter"], torch.nn.Parameter)
    assert torch.equal(torch.arange(5.0) + seed, state["parameter"])
    assert torch.equal(torch.arange(4) + seed, state["buffer"])
    assert [seed, seed + 1, seed + 2] == list(state["array"])
    assert (seed, BYTES, [0.5, ("a", None)]) == (state["step"], state["bytes"], state["history"])
    assert torch.equal(RANDOM, state["random"])
    assert (0, 0) == (state["rank"], int(state["own"].max()))  # what ranks have of their own is rank 0's
    assert [path.name] == sorted(entry.name for entry in path.parent.iterdir())


def error_on_all(results: list[Any]) -> str:
    """The message of the error that every rank raised."""
    assert {CheckpointError} == {type(result) for result in results}, results
    (message,) = {str(result) for result in results}
    return message


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_process_loads_what_ranks_saved(ranks: GlooRanks, size: int, tmp_path: Path) -> None:
    """The result has whole tensors, whatever ranks held, and no earlier checkpoint's values."""
    path = tmp_path / "latest"
    assert [None] * size == ranks(shared_states.save, size, path, 1)
    check(path, 1)
    assert [None] * size == ranks(shared_states.save, size, path, 2)
    check(path, 2)
    seen = ckpt.inspect(path)
    assert () == seen.problems
    assert seen.tensors is not None
    assert {"model.embed": (7, 3), "model.head": (7, 3)}.items() <= {it.name: it.shape for it in seen.tensors}.items()
    assert torch.equal(whole(2)["columns"], ckpt.load(path, names=["model.columns"])["model.columns"])


def test_meshes_of_two_dimensions(ranks: GlooRanks, tmp_path: Path) -> None:
    """Shards on both dimensions, replicas, and tensors that lie on one dimension of the mesh."""
    assert [None] * 4 == ranks(shared_states.save_grid, 4, tmp_path / "grid", 1)
    state = ckpt.load(tmp_path / "grid")
    for name, values in {"both": "embed", "mixed": "columns", "one": "half"}.items():
        assert torch.equal(whole(1)[values], state[name])


def test_the_training_loops_group_is_left_alone(ranks: GlooRanks, tmp_path: Path) -> None:
    """A save doesn't disturb a collective of the default group that has begun on some ranks."""
    assert [2.0, 2.0] == ranks(shared_states.save_beside_training, 2, tmp_path / "latest")
    check(tmp_path / "latest", 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("odd", object(), "rank 1: the state's 'model.odd' is of type builtins.object"),
        ("more", torch.ones(2), "rank 0 has 9 DTensors, and rank 1 has 10"),
        ("norm", torch.ones(7), "rank 0 has 9 DTensors, and rank 1 has 9, not of the same names, shapes"),
    ],
)
def test_a_rank_with_another_state(ranks: GlooRanks, name: str, value: Any, message: str, tmp_path: Path) -> None:
    """All ranks get the error, and what was saved before stays."""
    ranks(shared_states.save, 2, tmp_path / "latest", 1)
    assert message in error_on_all(ranks(shared_states.save_where_rank_1_has, 2, tmp_path / "latest", name, value))
    check(tmp_path / "latest", 1)


def test_values_that_are_still_to_be_reduced(ranks: GlooRanks, tmp_path: Path) -> None:
    """DCP would save one rank's summand as the sum."""
    assert "'loss' is a DTensor with the placements" in error_on_all(
        ranks(shared_states.save_partial, 2, tmp_path / "latest")
    )


def test_a_process_group_that_has_ended(ranks: GlooRanks, tmp_path: Path) -> None:
    """DTensors may outlive it; the message says what to do instead."""
    message = error_on_all(ranks(shared_states.save_without_a_group, 2, tmp_path / "latest"))
    assert "this process is in no process group: call ckpt.save on every rank before destroy_process_group" in message


def test_ranks_that_name_different_checkpoints(ranks: GlooRanks, tmp_path: Path) -> None:
    """Both paths are in the message, and neither is made."""
    message = error_on_all(ranks(shared_states.save_elsewhere_on_rank_1, 2, tmp_path / "at"))
    assert f"rank 0 called ckpt.save with {tmp_path}/at-0, and rank 1 called ckpt.save with {tmp_path}/at-1" in message
    assert [] == list(tmp_path.iterdir())


def test_a_rank_that_never_comes(ranks: GlooRanks, tmp_path: Path) -> None:
    """Whoever came is told who is missing and what all must call; nothing is saved."""
    first, second = ranks(shared_states.save_on_rank_0_only, 2, tmp_path / "latest")
    assert second is None
    assert "rank 1 did not answer within 0 s: all ranks of the job must call ckpt.save" in str(first)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_comes_too_late(ranks: GlooRanks, late: int, tmp_path: Path) -> None:
    """It gets the error of those that gave up, and the next save succeeds."""
    messages = ranks(shared_states.save_late, 2, tmp_path / "latest", late)
    assert f"rank {late} did not answer" in messages[0]
    assert messages[0] == messages[1]
    check(tmp_path / "latest", 2)


def test_a_rank_whose_disk_is_full(ranks: GlooRanks, tmp_path: Path) -> None:
    """All ranks name it and the reason, and what was saved before stays."""
    ranks(shared_states.save, 3, tmp_path / "latest", 1)
    work = shared_states.save_while_rank_1_fails
    message = error_on_all(ranks(work, 3, tmp_path / "latest", shared_states.full_disk))
    assert "rank 1: OSError: [Errno 28] No space left on device" in message
    check(tmp_path / "latest", 1)


def test_a_rank_that_is_killed(ranks: GlooRanks, tmp_path: Path) -> None:
    """The others notice at once, and name it; what was saved before stays, and a later job saves again."""
    ranks(shared_states.save, 3, tmp_path / "latest", 1)
    work = shared_states.save_while_rank_1_fails
    first, killed, third = ranks(work, 3, tmp_path / "latest", shared_states.die)
    assert killed is None
    for error in (first, third):
        assert isinstance(error, CheckpointError)
        assert "rank 1 did not answer within 10 s, after the connection of the ranks broke" in str(error)
    check(tmp_path / "latest", 1)
    assert [None] * 3 == ranks(shared_states.save, 3, tmp_path / "latest", 2)
    check(tmp_path / "latest", 2)


def test_ties_on_which_all_ranks_agree() -> None:
    """Empty shards may look tied on one rank; tensors are tied if they are on every rank."""
    assert {"b": "a"} == _ties_of_all([{"b": "a"}, {"b": "a"}])
    assert {} == _ties_of_all([{"b": "a"}, {}])
    assert {"c": "b"} == _ties_of_all([{"b": "a", "c": "a"}, {"c": "b"}])
    assert {"d": "b"} == _ties_of_all([{"b": "a", "c": "a", "d": "a"}, {"d": "b"}])
