"""One save of a state, as a program that is recorded: `python -m support.one_save WHAT DIRECTORY STEP STRATEGY [SKIP]`.

WHAT is `save`, or `checkpointer1` or `checkpointer2`, by its levels. SKIP names what is not synced: see `doctor`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import ckpt
from ckpt.disk import durable, writeback
from jobs.faults.recording import mark

ELEMENTS = 3000


def state_of(step: int) -> dict[str, Any]:
    """A state of a few blocks whose every part shows its step."""
    weight = torch.arange(ELEMENTS, dtype=torch.float32) + step
    return {"model": {"weight": weight, "tied": weight, "bias": torch.full((5,), step)}, "step": step}


def step_in(state: dict[str, Any]) -> int:
    """The step of a state whose parts agree."""
    step = int(state["step"])
    assert torch.equal(state["model"]["weight"], torch.arange(ELEMENTS, dtype=torch.float32) + step)
    assert torch.equal(state["model"]["bias"], torch.full((5,), step))
    return step


def doctor(skip: str, parent: Path) -> None:
    """Leave out syncs: `all`; those of the `content`, before it gets its name; or that of the `name`."""
    sync = durable.fsync_path
    if skip == "all":
        durable.fsync_path = durable.flush = writeback.raise_errors = lambda *_, **__: None  # type: ignore[assignment]
    elif skip == "content":
        durable.flush = writeback.raise_errors = lambda *_, **__: None  # type: ignore[assignment]
    elif skip == "name":
        durable.fsync_path = lambda path: None if path == parent else sync(path)


def main(what: str, directory: Path, step: int, strategy: str, skip: str = "") -> None:
    """Save."""
    torch.set_num_threads(1)
    doctor(skip, directory / "run")
    if what == "save":
        state = state_of(step)
        mark("begin")
        ckpt.save(state, directory / "run" / "latest", strategy)
        mark("returned")
        return
    local: dict[str, Any] = {"local": directory / "local"} if what.endswith("2") else {}
    with ckpt.Checkpointer(
        directory / "shared", background="thread", keep=1, strategy=strategy, **local
    ) as checkpoints:
        checkpoints.restore()
        mark("begin")
        checkpoints.save(step, state_of(step))
        checkpoints._wait_for_save()
        mark("returned")
        checkpoints.wait()
        mark("drained")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
