"""`Checkpointer`: what a series of checkpoints holds after saves, failures and restarts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

import ckpt
from ckpt.background.process import ProcessSaver
from ckpt.checkpointer import Checkpointer
from ckpt.disk import room
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.series import removing, saving, steps
from ckpt.series.keep import Keep
from support.series import spoil, state_of, step_in
from support.waiting import until

WAYS: tuple[Literal["process", "thread", "none"], ...] = ("process", "thread", "none")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    """Every way to save."""
    return request.param


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A series' directory, which the first save makes."""
    return tmp_path / "deep" / "run"


def test_what_is_saved_is_the_state_at_the_call(run: Path, way: Any) -> None:
    """CPU tensors, arrays and plain values too, though the program changes them as soon as `save` returns."""
    with Checkpointer(run, background=way) as checkpoints:
        for step in (1, 2, 3):
            state = state_of(step)
            blocked = checkpoints.save(step, state)
            spoil(state)
            assert (blocked.save_s > 0, blocked.copy_s > 0) == (way == "none", way != "none")
    assert checkpoints.steps() == [1, 2, 3]
    assert [step_in(ckpt.load(steps.path_of(run, step))) for step in (1, 2, 3)] == [1, 2, 3]
    assert step_in(ckpt.load(run / "latest")) == 3


def test_due(run: Path) -> None:
    """After every so many steps."""
    with Checkpointer(run, every=5) as checkpoints:
        assert [step for step in range(1, 12) if checkpoints.due(step)] == [5, 10]


def test_what_stays(run: Path, way: Any) -> None:
    """The newest two, every fourth, and the one with the lowest loss."""
    keep = Keep(last=2, every=4, lowest="loss")
    with Checkpointer(run, background=way, keep=keep) as checkpoints:
        for step, loss in enumerate([5, 1, 3, 2, 4, 6, 7], 1):
            checkpoints.save(step, state_of(step), {"loss": loss})
    assert checkpoints.steps() == [2, 4, 6, 7]
    assert sorted(path.name for path in run.iterdir()) == [
        "latest",
        *(steps.path_of(run, n).name for n in (2, 4, 6, 7)),
    ]


def test_one_save_is_in_flight(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next waits for it, and reports how long."""
    gates = {1: threading.Event(), 2: threading.Event()}
    real = saving.save

    def gated(*arguments: Any, step: int, **options: Any) -> Any:
        gates[step].wait()
        return real(*arguments, step=step, **options)

    monkeypatch.setattr(saving, "save", gated)
    with Checkpointer(run, background="thread") as checkpoints:
        checkpoints.save(1, state_of(1))
        assert checkpoints.steps() == []
        threading.Timer(0.1, gates[1].set).start()
        assert checkpoints.save(2, state_of(2)).wait_s > 0
        assert checkpoints.steps() == [1]
        gates[2].set()
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("way", "call"),
    [("process", "wait"), ("thread", "save"), ("thread", "wait"), ("thread", "close"), ("thread", "restore")],
)
def test_an_error_arrives_once(run: Path, way: Any, call: str) -> None:
    """At the next call, with the step; after that, saves work again."""
    run.mkdir(parents=True)
    blocking = steps.path_of(run, 7)
    blocking.write_text("a file of the user's")
    checkpoints = Checkpointer(run, background=way)
    calls = {
        "save": lambda: checkpoints.save(8, state_of(8)),
        "wait": checkpoints.wait,
        "close": checkpoints.close,
        "restore": checkpoints.restore,
    }
    checkpoints.save(7, state_of(7))
    with pytest.raises(
        CheckpointError, match=r"^the save of step 7 failed: .*step-000000007 exists and is not a check"
    ):
        calls[call]()
    assert blocking.read_text() == "a file of the user's"
    checkpoints.wait()
    if call != "close":
        checkpoints.save(9, state_of(9))
    checkpoints.close()
    assert checkpoints.steps() == ([9] if call != "close" else [])


def test_an_error_is_a_note_to_another_error(run: Path) -> None:
    """What ended the training stays what the program shows first."""
    run.mkdir(parents=True)
    steps.path_of(run, 7).touch()

    def train() -> None:
        with Checkpointer(run, background="thread") as checkpoints:
            checkpoints.save(7, state_of(7))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    assert "the save of step 7 failed" in caught.value.__notes__[0]


def test_a_killed_process(run: Path) -> None:
    """It is an error with the step; the checkpoint before stays, and the next save works and leaves nothing."""
    with Checkpointer(run) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        (pid,) = checkpoints.helpers
        os.kill(pid, signal.SIGSTOP)
        checkpoints.save(2, state_of(2))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CheckpointError, match=r"^the save of step 2 failed: the process that saves was ended by"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(3, state_of(3))
    assert checkpoints.steps() == [1, 3]
    assert sorted(path.name for path in run.iterdir()) == ["latest", "step-000000001", "step-000000003"]


def test_the_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit, then `latest`, then the removal of what needn't stay: an error of one leaves what follows undone."""
    with Checkpointer(run, background="none", keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))

        def fails(*_: object) -> None:
            raise OSError("no links today")

        monkeypatch.setattr(steps, "point_latest", fails)
        with pytest.raises(CheckpointError, match="step-000000002 is committed, but latest doesn't lead to it"):
            checkpoints.save(2, state_of(2))
        assert checkpoints.steps() == [1, 2]
        assert (run / "latest").readlink() == Path("step-000000001")
        monkeypatch.undo()
    with Checkpointer(run, background="none", keep=1) as checkpoints:
        restored = checkpoints.restore()
        assert restored is not None
        assert restored.step == 2
        assert (run / "latest").readlink() == Path("step-000000002")


def test_a_removal_that_fails(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a warning: the save is committed."""
    with Checkpointer(run, background="thread", keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))

        def fails(path: Path) -> None:
            raise OSError(5, "Input/output error", str(path))

        monkeypatch.setattr(removing, "remove", fails)
        checkpoints.save(2, state_of(2))
        with pytest.warns(CheckpointWarning, match="step 2 is committed, but an older checkpoint could not be removed"):
            checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_a_copy_that_is_too_large(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without memory for a copy, the save holds the program until it is committed, and a log line has the reason."""
    with Checkpointer(run, background="thread", copy_bytes=1000) as checkpoints:
        blocked = checkpoints.save(1, state_of(1))
        assert blocked.save_s > 0
        assert blocked.copy_s == 0
        assert checkpoints.steps() == [1]
    assert "a copy of the state takes" in caplog.text


def test_no_room(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that can't fit is refused at the call."""
    monkeypatch.setattr(room, "free_bytes_of", lambda _: 3000)
    with Checkpointer(run, background="none") as checkpoints:
        with pytest.raises(CheckpointError, match="the checkpoint takes 0 MB, and 0 MB are free there"):
            checkpoints.save(1, state_of(1))
        assert checkpoints.steps() == []


def test_a_save_starts_no_program(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first one: a training process may be large, and its loop waits."""
    with Checkpointer(run) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
        checkpoints.save(2, state_of(2))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("arguments", [{"every": 0}, {"keep": 0}, {"background": "fork"}, {"strategy": "zip"}])
def test_arguments_that_can_t_be_used(run: Path, arguments: dict[str, Any]) -> None:
    """They are refused at once."""
    with pytest.raises(CheckpointError):
        Checkpointer(run, **arguments)


def test_warm(run: Path) -> None:
    """The process is there, and the memory for a copy, before the first save."""
    with Checkpointer(run) as checkpoints:
        checkpoints.warm(state_of(1))
        assert len(checkpoints.helpers) == 1
        assert isinstance(checkpoints._saves._saver, ProcessSaver)
        assert checkpoints._saves._saver._memory.mapped is not None


@pytest.mark.parametrize("levels", [1, 2])
def test_what_fifty_saves_leave_in_memory(run: Path, way: Any, levels: int) -> None:
    """No more memory, descriptors and threads than three: in the program, and in the process that saves."""
    two = {"local": run.with_name("local")} if levels == 2 else {}
    with Checkpointer(run, background=way, keep=1, **two) as checkpoints:
        state = state_of(0, elements=2_000_000)

        def after(count: int) -> dict[int, tuple[int, int, int]]:
            for _ in range(count):
                state["step"] += 1
                checkpoints.save(state["step"], state)
                checkpoints.wait()
            gc.collect()
            return {process: held_by(process) for process in [os.getpid(), *checkpoints.helpers]}

        few, many = after(3), after(47)
        assert few.keys() == many.keys()
        for process, (memory_bytes, descriptors, threads) in many.items():
            assert memory_bytes < few[process][0] + 24e6  # three times what one of the 47 states takes
            assert descriptors <= few[process][1]
            before = few[process][2]
            until(lambda: held_by(process)[2] <= before, f"no more threads than {before}, and not {threads}")  # noqa: B023


def held_by(process: int) -> tuple[int, int, int]:
    """The bytes of memory, the descriptors and the threads of a process."""
    known = psutil.Process(process)
    return known.memory_info().rss, known.num_fds(), known.num_threads()
