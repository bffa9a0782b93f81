"""`Checkpointer` on two levels: saves are committed on node-local storage, and copied to a shared directory."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

import ckpt
from ckpt.checkpointer import Checkpointer
from ckpt.disk import room
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.series import draining, steps
from ckpt.series.keep import Keep
from ckpt.series.local import Local
from support.series import spoil, state_of, step_in

WAYS: tuple[Literal["process", "thread", "none"], ...] = ("process", "thread", "none")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Node-local storage."""
    return tmp_path / "nvme" / "run"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Shared storage."""
    return tmp_path / "lustre" / "run"


class Gate:
    """Copies to the shared level wait for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        copy = draining.copy_files

        def gated(*arguments: Any) -> None:
            assert self.open.wait(300)
            copy(*arguments)

        monkeypatch.setattr(draining, "copy_files", gated)


def no_space(*_: Any) -> None:
    """Fail as a full filesystem does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def damage(checkpoint: Path) -> None:
    """Flip the last bit of a checkpoint's data."""
    file = next(checkpoint.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("way", WAYS)
def test_every_checkpoint_is_copied(way: Literal["process", "thread", "none"], local: Path, shared: Path) -> None:
    """What stays on either level is its own matter; a copy is the checkpoint, with its metrics."""
    keep = Keep(last=2, lowest="loss")
    with Checkpointer(shared, local=local, background=way, keep=keep) as checkpoints:
        for step, loss in enumerate([3, 1, 4, 2], 1):
            state = state_of(step)
            checkpoints.save(step, state, {"loss": loss})
            spoil(state)
            checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 4]
    assert list(steps.all_whole(shared)) == [2, 3, 4]
    assert list(steps.all_whole(local)) == [4]
    assert [step_in(ckpt.load(level / "latest")) for level in (shared, local)] == [4, 4]
    assert step_in(ckpt.load(steps.path_of(shared, 2))) == 2
    assert sorted(path.name for path in shared.iterdir()) == [
        "latest", *(f"step-{step:09d}" for step in (2, 3, 4))
    ]  # fmt: skip


def test_slow_shared_storage_delays_no_save(local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it can't take in time is skipped, with a warning; the newest is copied in the end."""
    gate = Gate(monkeypatch)
    checkpoints = Checkpointer(shared, local=local, background="none")
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    assert list(steps.all_whole(local)) == [1, 3]  # one is being copied
    assert not steps.all_whole(shared)
    gate.open.set()
    with pytest.warns(CheckpointWarning, match=f"step 2 is not copied to {shared}: newer checkpoints were saved"):
        checkpoints.close()
    assert list(steps.all_whole(shared)) == [1, 3]
    assert list(steps.all_whole(local)) == [3]


def test_copies_of_some_steps(local: Path, shared: Path) -> None:
    """Every so many steps, and the last one; more may stay on the local level."""
    with Checkpointer(shared, local=Local(local, keep=2, drain_every=4), background="none") as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state_of(step))
    assert list(steps.all_whole(local)) == [6, 7]
    assert list(steps.all_whole(shared)) == [4, 7]


def test_full_shared_storage(local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves go on; a warning has the reason; the copy is tried again; `wait` raises while it fails."""
    copy = draining.copy_files
    monkeypatch.setattr(draining, "copy_files", no_space)
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
        with pytest.raises(CheckpointError, match=f"step 1 is in {local} only.*No space left"):
            checkpoints.wait()
        checkpoints.save(2, state_of(2))
        with pytest.raises(CheckpointError, match="step 2 is in"):
            checkpoints.wait()
        assert [path.name for path in shared.iterdir()] == []
        monkeypatch.setattr(draining, "copy_files", copy)
        checkpoints.save(3, state_of(3))
        with pytest.warns(CheckpointWarning, match="step 2 is not copied"):
            checkpoints.wait()
        assert list(steps.all_whole(shared)) == [3]


def test_a_failed_copy_is_reported_by_the_next_save(local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a warning: the checkpoint is committed, on one level."""
    monkeypatch.setattr(draining, "copy_files", no_space)
    checkpoints = Checkpointer(shared, local=local, background="none")
    checkpoints.save(1, state_of(1))
    thread = checkpoints._levels._drain._thread  # type: ignore[union-attr]
    assert thread is not None
    thread.result()
    with pytest.warns(CheckpointWarning, match=f"step 1 is in {local} only, until a later attempt to copy it"):
        checkpoints.save(2, state_of(2))
    with pytest.raises(CheckpointError):
        checkpoints.close()


def test_a_restart_takes_the_local_copy(local: Path, shared: Path) -> None:
    """The shared one is loaded where the local one is damaged or gone; a warning has the reason."""
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
    at_rest = shared.with_name("aside")
    shutil.copytree(steps.path_of(shared, 1), at_rest)
    damage(steps.path_of(shared, 1))
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        restored = checkpoints.restore()  # a warning would be an error
        assert restored is not None
        assert step_in(restored.state) == 1

    shutil.rmtree(steps.path_of(shared, 1))
    shutil.copytree(at_rest, steps.path_of(shared, 1))
    damage(steps.path_of(local, 1))
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        with pytest.warns(CheckpointWarning, match=r"loaded .*lustre/run/step-000000001: .*nvme.*is damaged"):
            restored = checkpoints.restore()
        assert restored is not None
        assert (step_in(restored.state), restored.skipped) == (1, {})


def test_a_lost_node(local: Path, shared: Path) -> None:
    """Another node goes on from the shared level, and an older state that lies on its disk is not taken."""
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
    elsewhere = local.with_name("other-node")
    with Checkpointer(shared, local=elsewhere, background="none") as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert step_in(restored.state) == 1
        checkpoints.save(2, state_of(2))
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert step_in(restored.state) == 2


def test_what_was_not_copied_is_copied_after_a_restart(
    local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program before ended in between; its checkpoint is loaded first, and so known to be undamaged."""
    with monkeypatch.context() as patch:
        patch.setattr(draining, "copy_files", no_space)
        checkpoints = Checkpointer(shared, local=local, background="none")
        checkpoints.save(1, state_of(1))
        with pytest.raises(CheckpointError):
            checkpoints.close()
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert step_in(restored.state) == 1
    assert step_in(ckpt.load(shared / "latest")) == 1


def test_a_damaged_local_checkpoint_is_not_copied(local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older one of the shared level is loaded, and stays there."""
    with Checkpointer(shared, local=local, background="none", keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(draining, "copy_files", no_space)
        checkpoints = Checkpointer(shared, local=local, background="none", keep=1)
        checkpoints.save(2, state_of(2))
        with pytest.raises(CheckpointError):
            checkpoints.close()
    damage(steps.path_of(local, 2))
    resuming = pytest.warns(CheckpointWarning, match="resuming from step 1")
    with Checkpointer(shared, local=local, background="none", keep=1) as checkpoints, resuming:
        restored = checkpoints.restore()
    assert restored is not None
    assert (step_in(restored.state), list(restored.skipped)) == (1, [2])
    assert list(steps.all_whole(shared)) == [1]


@pytest.mark.filterwarnings("ignore:step 3 is in:ckpt.errors.CheckpointWarning")
def test_room_on_the_local_level(local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none for another checkpoint, those that the shared level has are removed first."""

    def free_bytes_of(path: Path) -> int:
        is_full = path == local and bool(steps.all_whole(local))
        return 100 if is_full else 10**8

    monkeypatch.setattr(room, "free_bytes_of", free_bytes_of)
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
            checkpoints.wait()
    assert list(steps.all_whole(shared)) == [1, 2]

    monkeypatch.setattr(draining, "copy_files", no_space)
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        checkpoints.save(3, state_of(3))
        with pytest.raises(CheckpointError, match=f"can't save to {local}"):
            checkpoints.save(4, state_of(4))
        assert list(steps.all_whole(local)) == [3]  # nobody else has it
        with pytest.raises(CheckpointError, match="step 3 is in"):
            checkpoints.wait()
        monkeypatch.undo()


def test_a_save_that_is_committed_while_older_ones_are_removed(
    local: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays: copying an earlier one may end at the instant of its commit."""
    listed = steps.all_whole

    def commit_meanwhile(directory: Path) -> dict[int, Any]:
        known = listed(directory)
        if directory == local and 3 not in known:
            ckpt.save(state_of(3), steps.path_of(local, 3))
        return known

    with Checkpointer(shared, local=local, background="none") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step))
        checkpoints.wait()
        monkeypatch.setattr(steps, "all_whole", commit_meanwhile)
        assert checkpoints._levels._drain is not None
        checkpoints._levels._drain._tidy()
        assert 3 in steps.steps_in(local)


def test_a_local_directory_is_for_one_series(local: Path, shared: Path, tmp_path: Path) -> None:
    """Another series never resumes from what is left there."""
    with Checkpointer(shared, local=local, background="none") as checkpoints:
        checkpoints.save(1, state_of(1))
    of_the_first = pytest.raises(CheckpointError, match=f"checkpoints of the series in {shared}, and not of")
    with Checkpointer(tmp_path / "other", local=local) as checkpoints, of_the_first:
        checkpoints.restore()
    of_another = pytest.raises(CheckpointError, match="checkpoints of another series")
    with Checkpointer(tmp_path / "third", local=shared) as checkpoints, of_another:
        checkpoints.save(1, state_of(1))
    with pytest.raises(CheckpointError, match="can't be both levels"):
        Checkpointer(shared, local=shared)


@pytest.mark.parametrize("numbers", [{"keep": 0}, {"drain_every": 0}, {"drain_bytes_per_s": -1}])
def test_numbers_that_can_t_be_used(local: Path, numbers: dict[str, Any]) -> None:
    """They are refused at once."""
    with pytest.raises(CheckpointError, match="isn't possible"):
        Local(local, **numbers)


def test_the_rate_of_copies(local: Path, shared: Path) -> None:
    """They take at least as long as the rate says."""
    state = state_of(1, elements=500_000)
    start_s = time.monotonic()
    with Checkpointer(shared, local=Local(local, drain_bytes_per_s=4e6), background="none") as checkpoints:
        checkpoints.save(1, state)
    assert time.monotonic() - start_s >= 0.5
    assert step_in(ckpt.load(shared / "latest")) == 1
