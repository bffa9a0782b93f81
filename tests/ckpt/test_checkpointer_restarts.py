"""`Checkpointer` after a restart: what it loads, what it skips, what it removes, and what it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from ckpt.disk import leftovers
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.series import steps
from support.series import state_of, step_in


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A series' directory, which the first save makes."""
    return tmp_path / "run"


def test_restore_takes_the_newest(run: Path) -> None:
    """With its step and metrics; a directory without checkpoints gives None."""
    with Checkpointer(run, background="thread") as checkpoints:
        assert checkpoints.restore() is None
        checkpoints.save(10, state_of(10), {"loss": 2})
        checkpoints.save(20, state_of(20), {"loss": math.inf})
    with Checkpointer(run, background="thread") as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert (restored.step, step_in(restored.state), restored.metrics) == (20, 20, {"loss": math.inf})
        assert restored.skipped == {}


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_restore_into_a_state_that_exists(run: Path) -> None:
    """Its tensors are filled where they are, also when the newest checkpoint turns out to be damaged."""
    with Checkpointer(run, background="none") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
    state = state_of(0)
    address = state["model"]["weight"].data_ptr()
    for newest in (2, 1):
        with Checkpointer(run, background="none") as checkpoints:
            restored = checkpoints.restore(state)
        assert restored is not None
        assert (restored.step, step_in(restored.state)) == (newest, newest)
        assert restored.state["model"]["weight"].data_ptr() == address
        if newest == 2:
            flip_last_bit(next(steps.path_of(run, 2).glob("*.safetensors")))


def flip_last_bit(file: Path) -> None:
    """Damage a tensor's data: it is at the end of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a checkpoint's largest file."""
    largest = max(path.iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_damaged_checkpoints_are_skipped(run: Path) -> None:
    """One with a flipped bit, and one that lacks a file: the warning has both, and the older one is loaded."""
    with Checkpointer(run, background="none") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
    damage(steps.path_of(run, 3))
    next(steps.path_of(run, 2).glob("*.safetensors")).unlink()
    with Checkpointer(run, background="none") as checkpoints:
        with pytest.warns(
            CheckpointWarning, match=r"resuming from step 1: .*step-000000003.*; .*step-000000002"
        ) as seen:
            restored = checkpoints.restore()
        assert len(seen) == 1
        assert restored is not None
        assert (restored.step, sorted(restored.skipped)) == (1, [2, 3])


def test_nothing_that_loads_is_an_error(run: Path) -> None:
    """Training doesn't start at nothing where something was saved, unless the program asks for that."""
    with Checkpointer(run, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
    damage(steps.path_of(run, 1))
    with Checkpointer(run, background="none") as checkpoints:
        with pytest.raises(CheckpointError, match=r"none of the checkpoints .* is damaged.*restore\(start_over=True\)"):
            checkpoints.restore()
        assert checkpoints.restore(start_over=True) is None


def test_damaged_checkpoints_don_t_count(run: Path) -> None:
    """The newest whole ones stay, and what is damaged is left for its owner to look at."""
    with Checkpointer(run, background="none", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
        (steps.path_of(run, 2) / "checkpoint.json").unlink()
        checkpoints.save(3, state_of(3))
        assert checkpoints.steps() == [1, 3]
    assert steps.steps_in(run) == [1, 2, 3]


def test_only_what_is_ours_is_removed(run: Path) -> None:
    """Other files, other checkpoints, and names that merely look like ours stay."""
    run.mkdir(parents=True)
    others = ["notes.txt", "step-5", "step-000000002.old"]
    for name in others:
        (run / name).touch()
    ckpt.save(state_of(0), run / "best")
    (run / "step-000000001").mkdir()
    (run / "step-000000001" / "theirs").touch()
    with Checkpointer(run, background="none", keep=1) as checkpoints:
        for step in (2, 3):
            checkpoints.save(step, state_of(step))
    assert sorted(path.name for path in run.iterdir()) == sorted(
        [*others, "best", "latest", "step-000000001", "step-000000003"]
    )


def test_an_earlier_step_is_refused(run: Path) -> None:
    """A restart would go on from the later one; the same step again replaces its checkpoint."""
    with Checkpointer(run, background="none") as checkpoints:
        checkpoints.save(5, state_of(1))
        checkpoints.save(5, state_of(2))
        assert step_in(ckpt.load(run / "latest")) == 2
    with (
        Checkpointer(run, background="none") as checkpoints,
        pytest.raises(CheckpointError, match=r"can't save step 4: .* has a checkpoint of step 5"),
    ):
        checkpoints.save(4, state_of(4))


def test_latest_that_is_not_ours(run: Path) -> None:
    """A file, a directory or a checkpoint of that name is refused before anything is saved, and stays."""
    run.mkdir(parents=True)
    (run / "latest").write_text("mine")
    with pytest.raises(CheckpointError, match="latest is not a link to one of the steps"):
        Checkpointer(run)
    assert (run / "latest").read_text() == "mine"


def test_what_interrupted_programs_left_is_removed(run: Path) -> None:
    """Unfinished saves, unfinished removals and unfinished links, at the next start; those of other names stay."""
    with Checkpointer(run, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.save(2, state_of(2))
    unfinished = [leftovers.new_path(steps.path_of(run, 3)), leftovers.new_path(run / "best")]
    for path in unfinished:
        path.mkdir()
    steps.path_of(run, 1).rename(leftovers.new_path(steps.path_of(run, 1)))
    (run / ".latest.0123456789abcdef.link").symlink_to("step-000000001")
    (run / "latest").unlink()
    with Checkpointer(run, background="none") as checkpoints:
        assert checkpoints.restore() is not None
    assert sorted(path.name for path in run.iterdir()) == sorted([unfinished[1].name, "latest", "step-000000002"])


@pytest.mark.usefixtures("without_exchange")
def test_where_names_become_links(run: Path) -> None:
    """A step that is saved twice is a link to a version: it is removed with it, and a copy of the link keeps it."""
    with Checkpointer(run, background="none", keep=1) as checkpoints:
        for step in (1, 1, 2):
            checkpoints.save(step, state_of(step))
        assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
        checkpoints.save(2, state_of(2))
        (run / "mine").symlink_to(steps.path_of(run, 2).readlink())
        checkpoints.save(3, state_of(3))
    assert checkpoints.steps() == [3]
    assert step_in(ckpt.load(run / "mine")) == 2


def test_a_crash_while_a_link_is_removed(run: Path) -> None:
    """The name that leads nowhere goes at the next start."""
    run.mkdir(parents=True)
    steps.path_of(run, 1).symlink_to(".step-000000001@0123456789abcdef")
    with Checkpointer(run, background="none") as checkpoints:
        assert checkpoints.restore() is None
    assert list(run.iterdir()) == []
