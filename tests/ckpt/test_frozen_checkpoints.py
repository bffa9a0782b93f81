"""Every strategy reads the checkpoints that an earlier version of it wrote, bit for bit."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckpt
from ckpt.process_group.group import SingleProcess
from ckpt.registry import create, names, strategy_class
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategy import Strategy
from ckpt.testing.states import exact
from support.frozen import CASES, OPTION_SETS, RANKS_CASES, flat_state, nested_state, rows_of_rank
from support.ranks import Load, Processes, in_threads
from support.strategies import usable

FROZEN = Path(__file__).parent / "data" / "frozen"
"""The checkpoints, and `write.py`, which says what wrote them."""

RANKS = 2
STORED = Partition.of(layout_of_state(flat_state()), "dim0", RANKS)

IN_PROCESSES = {"torch_dcp", "torch_dcp_direct"}
"""They silence a warning while they work, and threads share what is silenced."""

Case = tuple[str, dict[str, Any]]


def label(case: Case) -> str:
    """The name of a case and of its checkpoint."""
    return create(*case).label


EVERY = pytest.mark.parametrize("case", CASES, ids=label)
EVERY_OF_RANKS = pytest.mark.parametrize("case", RANKS_CASES, ids=label)
EVERY_THAT_RESHARDS = pytest.mark.parametrize(
    "case", [case for case in RANKS_CASES if create(*case).capabilities.can_reshard], ids=label
)


@pytest.fixture
def strategy(case: Case) -> Strategy:
    """The strategy that reads the checkpoint."""
    return usable(*case)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Ranks that are processes."""
    with Processes() as started:
        yield started


def unpacked(name: str, directory: Path) -> Path:
    """Unpack a frozen checkpoint."""
    with tarfile.open(FROZEN / f"{name}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "checkpoint"


def check_tied(state: State) -> None:
    """Tied tensors are one tensor in memory, and no others are."""
    first_of: dict[int, str] = {}
    tied = {}
    for name, tensor in state.items():
        if tensor.numel() and (first := first_of.setdefault(tensor.data_ptr(), name)) != name:
            tied[name] = first
    assert tied == {"head": "embedding"}


def plain(value: Any) -> Any:
    """A nested state with each tensor and array replaced by all that must come back of it."""
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]  # in order
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, torch.Tensor):
        return exact({"": value})
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    return (type(value), value)


def test_every_strategy_has_a_frozen_checkpoint() -> None:
    """No strategy lacks a case, no case lacks a checkpoint, and no checkpoint lacks a case."""
    assert names() == sorted(OPTION_SETS)
    expected = {f"{label(case)}.tar.gz" for case in CASES}
    expected |= {f"{label(case)}-{RANKS}-ranks.tar.gz" for case in RANKS_CASES}
    assert expected == {path.name for path in FROZEN.iterdir() if path.is_file()} - {"write.py"}
    assert {name for name, _ in RANKS_CASES} == set(names())


@EVERY
def test_load(case: Case, strategy: Strategy, tmp_path: Path) -> None:
    """`ckpt.load` restores the nested state, and the tied tensors as one."""
    loaded = ckpt.load(unpacked(label(case), tmp_path))
    assert plain(nested_state()) == plain(loaded)
    check_tied(loaded["model"])
    assert strategy_class(ckpt.inspect(tmp_path / "checkpoint").strategy) is type(strategy)  # by a former name, too


@EVERY_OF_RANKS
def test_read_by_as_many_ranks(case: Case, strategy: Strategy, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each rank reads the rows that it had."""
    directory = unpacked(f"{label(case)}-{RANKS}-ranks", tmp_path)
    run = request.getfixturevalue("processes") if strategy.name in IN_PROCESSES else in_threads
    loaded = run(Load(strategy, directory, STORED, STORED), RANKS)
    assert [exact(rows_of_rank(rank, RANKS)) for rank in range(RANKS)] == loaded


@EVERY_THAT_RESHARDS
def test_read_by_one_rank(case: Case, strategy: Strategy, tmp_path: Path) -> None:
    """One rank reads everything; not every strategy then returns tied tensors as one."""
    directory = unpacked(f"{label(case)}-{RANKS}-ranks", tmp_path)
    everything = RankShards(Partition.of(STORED.tensors, "dim0", 1), 0)
    loaded = strategy.read(directory, everything.wanted, STORED, SingleProcess())
    assert exact(flat_state()) == exact(loaded)
