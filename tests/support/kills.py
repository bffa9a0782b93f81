"""A training loop that is killed at random instants: `python -m support.kills DIRECTORY BACKGROUND LEVELS KILLS SEED`.

The program forks the loop, and so must have no other threads: a process of its own. It checks every restart.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ckpt.checkpointer import Checkpointer
from ckpt.series import steps
from support.series import state_of, step_in

LONGEST_S = 0.1

_PR_SET_CHILD_SUBREAPER = 36


def levels_of(run: Path, levels: int) -> dict[str, Any]:
    """Where a loop saves: into one directory, or into a local one first."""
    return {"directory": run / "shared"} | ({"local": run / "local"} if levels > 1 else {})


def train(run: Path, acknowledged: int, background: str, levels: int) -> None:
    """Save after every step, and report each step that is committed."""
    with Checkpointer(**levels_of(run, levels), background=background, keep=2) as checkpoints:  # type: ignore[arg-type]  # one of the names
        restored = checkpoints.restore()
        step = restored.step if restored else 0
        while True:
            checkpoints.save(step + 1, state_of(step + 1, elements=300_000))  # the save before is committed
            os.write(acknowledged, step.to_bytes(8))
            step += 1


def train_and_kill(run: Path, background: str, levels: int, reports: int, after_s: float) -> int:
    """Train in a child, kill it so long after so many reports, and return the last step that it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            train(run, writing, background, levels)
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
    with suppress(ChildProcessError):  # until there is none
        while True:
            os.wait()  # the process that saves ends after the loop, and may have committed another step
    return int.from_bytes(seen[-8:])


def restarted(run: Path, levels: int) -> int:
    """Restart; returns the step that was found, whose state is right, and checks that nothing else is left."""
    with Checkpointer(**levels_of(run, levels), background="none", keep=2) as checkpoints:
        restored = checkpoints.restore()
        kept = checkpoints.steps()
    assert restored is None or (step_in(restored.state) == restored.step and not restored.skipped)
    assert not kept or steps.all_whole(run / "shared").keys() >= {kept[-1]}  # copied, if it wasn't
    require_nothing_else(run)
    return restored.step if restored else 0


def require_nothing_else(run: Path) -> None:
    """Every level has whole checkpoints, a few, what leads to the newest, and nothing else."""
    for level in run.iterdir():
        here = steps.all_whole(level).keys()
        names = {path.name for path in level.iterdir()} - {"shared-directory"}
        assert names == ({"latest", *(f"step-{step:09d}" for step in here)} if here else set()), names
        assert len(here) <= 5


def main(run: Path, background: str, levels: int, kills: int, seed: int) -> None:
    """Kill the loop so many times, and restart it after each; print the last step."""
    torch.set_num_threads(1)  # torch's threads don't survive a fork
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # processes of a killed loop become this one's children
    chance = random.Random(seed)
    run.mkdir()
    newest = 0
    for number in range(kills):
        committed = train_and_kill(run, background, levels, number % 4, chance.uniform(0, LONGEST_S))
        step = restarted(run, levels)
        assert step >= max(newest, committed), (step, newest, committed)
        newest = step
    print(newest)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
