"""`Checkpointer` on two levels where every node has local storage of its own, with a part of every checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.errors import CheckpointError
from ckpt.series import steps
from support import series_ranks
from support.gloo_ranks import GlooRanks
from support.shared_states import check, flip, whole

TWO = [0, 0, 1, 1]
"""The nodes of four ranks."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The shared directory, which the first save makes."""
    return tmp_path / "run"


def train(ranks: GlooRanks, run: Path, last: int, nodes: list[int] = TWO) -> tuple[int | None, list[int]]:
    """Let ranks on those nodes restore, and save up to a step; returns what they restored, and rank 0's steps."""
    results = ranks(series_ranks.on_nodes, len(nodes), run, nodes, series_ranks.train_on_two_levels, last)
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert len({restored for restored, _ in results}) == 1
    return results[0]


def local_of(run: Path, node: int) -> Path:
    """A node's local directory."""
    return run.with_name(f"node-{node}") / "local"


def names(directory: Path) -> list[str]:
    """What lies there."""
    return sorted(path.name for path in directory.iterdir())


def test_every_node_commits_a_part(ranks: GlooRanks, run: Path) -> None:
    """The shared directory has whole checkpoints, and nothing else; a part by itself is none."""
    restored, kept = train(ranks, run, 3)
    assert (None, 1, 3) == (restored, kept[0], kept[-1])  # the second one was saved while the first one was copied
    check(steps.path_of(run, 3), 3)
    check(run / "latest", 3)
    assert {"latest", "step-000000003"} <= set(names(run)) <= {"latest", *(f"step-{step:09d}" for step in (1, 2, 3))}
    files = [names(steps.path_of(local_of(run, node), 3)) for node in (0, 1)]
    assert [".metadata", "__0_0.distcp", "__1_0.distcp", "checkpoint.json"] == files[0]
    assert [".metadata", "__2_0.distcp", "__3_0.distcp", "checkpoint.json"] == files[1]
    with pytest.raises(CheckpointError, match="is part 2 of 2 of a checkpoint"):
        ckpt.load(steps.path_of(local_of(run, 1), 3))


def test_a_restart_reads_the_nodes_own_parts(ranks: GlooRanks, run: Path) -> None:
    """What the shared level has of them may be damaged; nothing is left of the restart."""
    train(ranks, run, 2)
    flip(steps.path_of(run, 2) / "__3_0.distcp")
    flip(steps.path_of(run, 2) / "__1_0.distcp")
    assert train(ranks, run, 3)[0] == 2
    check(steps.path_of(run, 3), 3)
    assert [["latest", "shared-directory", "step-000000003"]] * 2 == [names(local_of(run, node)) for node in (0, 1)]


def test_what_was_not_copied_is_copied_at_the_restart(ranks: GlooRanks, run: Path) -> None:
    """As if the job had been killed before; also where the nodes come in another order, or one more comes."""
    train(ranks, run, 2)
    shutil.rmtree(steps.path_of(run, 2))
    leftover = run / "step-000000002.part-1"
    leftover.mkdir()
    (leftover / "__3_0.distcp").write_bytes(b"the beginning")
    assert train(ranks, run, 2, [1, 0, 0, 1])[0] == 2
    check(steps.path_of(run, 2), 2)
    assert not leftover.exists()
    shutil.rmtree(steps.path_of(run, 2))
    assert train(ranks, run, 3, [2, 0, 1])[0] == 2
    check(run / "latest", 3)


@pytest.mark.filterwarnings("ignore:resuming from step 1:ckpt.errors.CheckpointWarning")
def test_a_node_that_is_lost(ranks: GlooRanks, run: Path) -> None:
    """A restart takes the shared checkpoint; the newest of which all parts, or a copy, are there."""
    train(ranks, run, 1)
    shutil.rmtree(local_of(run, 1))
    assert train(ranks, run, 2)[0] == 1
    shutil.rmtree(steps.path_of(run, 2))
    shutil.rmtree(local_of(run, 1))
    restored, kept = train(ranks, run, 3)
    assert (1, 3) == (restored, kept[-1])
    check(run / "latest", 3)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_copy_that_fails(failing: int, ranks: GlooRanks, run: Path) -> None:
    """On either node: saves go on, the step has a warning, and a later one is copied whole."""
    results: list[Any] = ranks(series_ranks.on_nodes, 4, run, TWO, series_ranks.train_while_a_copy_fails, failing)
    assert [[True], [False]] == [results[0], results[1]]
    check(run / "latest", 4)
    assert {"latest", "step-000000004"} <= set(names(run))
    assert not [name for name in names(run) if "part" in name]


def test_a_step_that_is_saved_again(ranks: GlooRanks, run: Path) -> None:
    """Every level has the second one in the end."""
    assert [[1]] * 4 == ranks(series_ranks.on_nodes, 4, run, TWO, series_ranks.save_again)
    state = ckpt.load(run / "latest")
    assert (2, True) == (state["step"], torch.equal(whole(2)["embed"], state["model"]["embed"]))
    assert ["latest", "step-000000001"] == names(run)
