"""A `Checkpointer` reports how its saves and copies ended, and when checkpoints were committed on a level."""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ckpt.checkpointer import Checkpointer
from ckpt.errors import CheckpointError
from ckpt.series import draining, steps
from ckpt.series.local import Local
from ckpt.series.saving import Outcome
from support.series import state_of


class Outcomes:
    """Collects outcomes, and waits for them."""

    def __init__(self) -> None:
        self.all: list[Outcome] = []
        self._changed = threading.Condition()

    def __call__(self, outcome: Outcome) -> None:
        """Take one."""
        with self._changed:
            self.all.append(outcome)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Outcome]:
        """The outcomes, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, timeout=60)
            return self.all


@pytest.mark.parametrize("background", ["process", "thread", "none"])
def test_when_a_save_was_committed(background: Any, tmp_path: Path) -> None:
    """It is between the call and the end of `wait`, by a clock that the process which saved shares."""
    outcomes = Outcomes()
    with Checkpointer(tmp_path, background=background, ended=outcomes) as checkpoints:
        before_s = time.perf_counter()
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        after_s = time.perf_counter()
    (outcome,) = outcomes.all
    assert (1, tmp_path, "") == (outcome.step, outcome.directory, outcome.problem)
    assert before_s < outcome.committed_s < after_s


def test_when_a_copy_was_committed(tmp_path: Path) -> None:
    """A copy has an outcome of its own, later than its save's."""
    outcomes = Outcomes()
    shared, local = tmp_path / "shared", tmp_path / "local"
    with Checkpointer(shared, local=local, ended=outcomes) as checkpoints:
        checkpoints.save(1, state_of(1))
    saved, copied = sorted(outcomes.all, key=lambda outcome: outcome.committed_s)
    assert [(1, local, ""), (1, shared, "")] == [(o.step, o.directory, o.problem) for o in (saved, copied)]
    assert saved.committed_s < copied.committed_s
    assert not checkpoints.is_copying


def test_a_save_that_fails(tmp_path: Path) -> None:
    """Its outcome has the error, as the next call raises it, before that call."""
    outcomes = Outcomes()
    checkpoints = Checkpointer(tmp_path, ended=outcomes)
    steps.path_of(tmp_path, 1).write_text("a file")
    checkpoints.save(1, state_of(1))
    (outcome,) = outcomes.wait(1)
    assert math.isnan(outcome.committed_s)
    with pytest.raises(CheckpointError, match=r"the save of step 1 failed: .* is not a checkpoint") as raised:
        checkpoints.close()
    assert str(raised.value) == outcome.problem


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_copy_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the reason; the save stays committed; what was removed meanwhile is given up, and holds nothing up."""
    outcomes, copy = Outcomes(), draining.copy_files

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(draining, "copy_files", no_space)
    shared, local = tmp_path / "shared", tmp_path / "local"
    with Checkpointer(shared, local=Local(local, keep=3), background="none", ended=outcomes) as checkpoints:
        checkpoints.save(1, state_of(1))
        by_level = {outcome.directory: outcome for outcome in outcomes.wait(2)}
        assert not by_level[local].problem
        assert "No space left" in by_level[shared].problem
        checkpoints._levels._drain._thread.result()  # type: ignore[union-attr]
        assert not checkpoints.is_copying
        shutil.rmtree(steps.path_of(local, 1))
        monkeypatch.setattr(draining, "copy_files", copy)
        checkpoints.save(2, state_of(2))
    given_up = [o.problem for o in outcomes.all if o.step == 1 and "no longer" in o.problem]
    assert [f"it is no longer whole in {local}"] == given_up
    assert [2] == list(steps.all_whole(shared))


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_program_that_has_to_end(tmp_path: Path) -> None:
    """It doesn't wait for a copy that would take hours."""
    outcomes = Outcomes()
    local = Local(tmp_path / "local", drain_bytes_per_s=1)
    checkpoints = Checkpointer(tmp_path / "shared", local=local, background="none", ended=outcomes)
    checkpoints.save(1, state_of(1))
    assert checkpoints.is_copying
    checkpoints.abandon_copies()
    with pytest.raises(CheckpointError):
        checkpoints.close()
    assert ["", "the copy was interrupted"] == sorted(outcome.problem for outcome in outcomes.all)
    assert [] == steps.steps_in(tmp_path / "shared")


def test_a_function_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the function that takes outcomes is logged, and does no harm to the series."""

    def fail(_: Outcome) -> None:
        raise ValueError("of the program")

    with Checkpointer(tmp_path, background="thread", ended=fail) as checkpoints:
        checkpoints.save(1, state_of(1))
    assert [1] == checkpoints.steps()
    assert "the function that takes the outcomes of saves failed" in caplog.text
