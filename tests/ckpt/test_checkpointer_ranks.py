"""`Checkpointer` with states that have DTensors: all ranks save behind their programs, and commit together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import CheckpointError
from ckpt.series import steps
from support import series_ranks, shared_states
from support.gloo_ranks import GlooRanks
from support.shared_states import check, flip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A series' directory, which the first save makes."""
    return tmp_path / "run"


def error_on_all(results: list[Any]) -> str:
    """The message of the error that every rank raised."""
    assert {CheckpointError} == {type(result) for result in results}, results
    (message,) = {str(result) for result in results}
    return message


@pytest.mark.parametrize(("size", "background"), [(1, "process"), (3, "process"), (2, "thread"), (2, "none")])
def test_what_is_saved_is_the_state_at_the_call(ranks: GlooRanks, size: int, background: str, run: Path) -> None:
    """Though every rank changes it at once; what needn't stay is removed; the training's group is left alone."""
    assert [[2, 3, 4]] * size == ranks(series_ranks.train, size, run, background, [4.0, 1.0, 3.0, 2.0])
    for step in (2, 3, 4):
        check(steps.path_of(run, step), step)
    check(run / "latest", 4)
    assert ["latest", *(f"step-{step:09d}" for step in (2, 3, 4))] == sorted(path.name for path in run.iterdir())


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_resumes(ranks: GlooRanks, size: int, run: Path) -> None:
    """Every rank has its shard of the newest checkpoint, its step and its metrics; and saves go on."""
    ranks(series_ranks.train, 2, run, "thread", [4.0, 1.0])
    assert [(2, True, {"loss": 1.0}, [])] * size == ranks(series_ranks.resume, size, run)
    assert [[1, 2, 3]] * size == ranks(series_ranks.resume_and_go_on, size, run)
    check(run / "latest", 3)


def test_nothing_to_resume_from(ranks: GlooRanks, run: Path) -> None:
    """All ranks start at the beginning."""
    assert [None, None] == ranks(series_ranks.resume, 2, run)


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_what_is_not_whole_is_skipped_on_all_ranks(ranks: GlooRanks, run: Path) -> None:
    """One lacks a file, one has a flipped bit; where nothing is left, no rank starts over unless told to."""
    ranks(series_ranks.train, 2, run, "thread", [1.0, 2.0, 3.0])
    next(steps.path_of(run, 3).glob("__1_*")).unlink()
    flip(next(steps.path_of(run, 2).glob("__0_*")))
    assert [(1, True, {"loss": 1.0}, [3, 2])] * 2 == ranks(series_ranks.resume, 2, run)
    next(steps.path_of(run, 1).glob("__1_*")).unlink()
    assert "training would start at nothing" in error_on_all(ranks(series_ranks.resume, 2, run))


def test_a_rank_that_fails_behind_its_program(ranks: GlooRanks, run: Path) -> None:
    """The next call raises the error on every rank, names step and rank, and saves nothing; the one after saves."""
    results = ranks(series_ranks.save_while_rank_1_fails, 3, run, shared_states.full_disk)
    assert {(results[0][0], (1, 3))} == {(message, tuple(kept)) for message, kept in results}
    assert results[0][0].startswith("the save of step 2 failed: ")
    assert "rank 1: OSError: [Errno 28] No space left on device" in results[0][0]
    check(run / "latest", 3)


def test_a_rank_that_is_killed_while_it_writes(ranks: GlooRanks, run: Path) -> None:
    """The others notice, and name it; a later job resumes, and nothing is left over after its first save."""
    first, killed, third = ranks(series_ranks.save_while_rank_1_fails, 3, run, shared_states.die)
    assert killed is None
    for error in (first, third):
        assert isinstance(error, CheckpointError)
    assert [[1, 2]] * 2 == ranks(series_ranks.resume_and_go_on, 2, run)
    assert ["latest", "step-000000001", "step-000000002"] == sorted(path.name for path in run.iterdir())


def test_the_process_of_a_rank_is_killed(ranks: GlooRanks, run: Path) -> None:
    """All ranks have the error, and nothing of that step is left; the next save has a new process."""
    first, second = ranks(series_ranks.save_while_the_process_of_rank_1_is_killed, 2, run)
    assert first == second == (first[0], [1, 3])
    assert first[0].startswith("the save of step 2 failed: ")
    assert "rank 1: CheckpointError: the process that saves was ended by SIGKILL" in first[0]
    check(run / "latest", 3)
    assert ["latest", "step-000000001", "step-000000003"] == sorted(path.name for path in run.iterdir())


def test_a_rank_that_never_comes(ranks: GlooRanks, run: Path) -> None:
    """Whoever came raises an error with who is missing, and what all must call; nothing is saved."""
    first, second = ranks(series_ranks.save_on_rank_0_only, 2, run)
    assert second is None
    assert "rank 1 did not answer within 0 s: all ranks of the job must call Checkpointer.save" in str(first)
    assert not run.exists()


def test_a_rank_without_memory_for_a_copy(ranks: GlooRanks, run: Path) -> None:
    """No rank waits for it."""
    assert "rank 1: a copy of the state takes" in error_on_all(
        ranks(series_ranks.save_without_memory_on_rank_1, 2, run)
    )
    assert [] == steps.steps_in(run)


def test_two_levels(ranks: GlooRanks, run: Path) -> None:
    """The ranks of a node save locally, and rank 0 copies; a restart takes the local copy, else the shared one."""
    local = series_ranks.local_of(run)
    assert [(None, [1, 2, 3])] * 2 == ranks(series_ranks.train_on_two_levels, 2, run, 3)
    check(steps.path_of(run, 3), 3)
    check(steps.path_of(local, 3), 3)
    assert [3] == steps.steps_in(local)

    shutil.rmtree(steps.path_of(run, 3))  # as if the job had been killed before it was copied
    assert [(3, [1, 2, 3])] * 3 == ranks(series_ranks.train_on_two_levels, 3, run, 3)
    check(steps.path_of(run, 3), 3)

    shutil.rmtree(local)  # another node
    assert [(3, [2, 3, 4])] * 2 == ranks(series_ranks.train_on_two_levels, 2, run, 4)
    check(steps.path_of(run, 4), 4)
    check(run / "latest", 4)


@pytest.mark.filterwarnings("ignore:loaded .*/run/step-000000002:ckpt.errors.CheckpointWarning")
def test_a_damaged_local_copy(ranks: GlooRanks, run: Path) -> None:
    """All ranks load the shared one."""
    assert [(None, [1, 2])] * 2 == ranks(series_ranks.train_on_two_levels, 2, run, 2)
    flip(next(steps.path_of(series_ranks.local_of(run), 2).glob("__1_*")))
    assert [(2, [1, 2])] * 2 == ranks(series_ranks.train_on_two_levels, 2, run, 2)
