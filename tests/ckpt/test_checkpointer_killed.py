"""A training loop that saves behind itself is killed at random instants, and every restart goes on where it may."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt.checkpointer import Background, Checkpointer
from support.series import state_of, step_in

KILLS = int(os.environ.get("CKPT_KILLS", "40"))
"""2,000 in a long run."""

LONGEST_S = 0.1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads don't survive a fork, and a child that needs them hangs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(run: Path, acknowledged: int, background: Background) -> None:
    """Save after every step, and report each step that is committed."""
    with Checkpointer(run, background=background, keep=2) as checkpoints:
        restored = checkpoints.restore()
        step = restored.step if restored else 0
        while True:
            checkpoints.save(step + 1, state_of(step + 1, elements=300_000))  # the save before is committed
            os.write(acknowledged, step.to_bytes(8))
            step += 1


def train_and_kill(run: Path, background: Background, reports: int, after_s: float) -> int:
    """Train in a child, kill it so long after so many reports, and return the last step that it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            train(run, writing, background)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123  # a descriptor
        seen = pipe.read(8 * reports)
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        seen += pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return int.from_bytes(seen[-8:])


def test_a_loop_that_is_killed(tmp_path: Path) -> None:
    """What was committed is there, bit for bit; nothing else is left after the next start."""
    run, chance = tmp_path / "run", random.Random(17)
    newest = 0
    for number in range(KILLS):
        committed = train_and_kill(run, "thread", number % 4, chance.uniform(0, LONGEST_S))
        with Checkpointer(run, background="none") as checkpoints:
            restored = checkpoints.restore()
            step = restored.step if restored else 0
            assert step >= max(newest, committed)
            assert restored is None or (step_in(restored.state) == step and not restored.skipped)
            kept = checkpoints.steps()
        names = {path.name for path in run.iterdir()} if run.exists() else set()
        assert names == ({"latest", *(f"step-{step:09d}" for step in kept)} if kept else set())
        assert len(kept) <= 3
        newest = step
    assert newest >= KILLS  # the second report is of a step more than the first, the third of two


def test_a_loop_whose_process_saves(tmp_path: Path) -> None:
    """The process that saves ends with the program that was killed; what it left goes at the next start."""
    run = tmp_path / "run"
    for after_s in (0.0, 0.05):
        committed = train_and_kill(run, "process", 3, after_s)
        end = time.monotonic() + 60
        while any(path.name.startswith(".partial-") for path in run.glob(".*")):
            with Checkpointer(run, background="none") as checkpoints:
                restored = checkpoints.restore()
            assert time.monotonic() < end
        with Checkpointer(run, background="none") as checkpoints:
            restored = checkpoints.restore()
            assert (restored.step if restored else 0) >= committed
            assert restored is None or step_in(restored.state) == restored.step
