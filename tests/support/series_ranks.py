"""What ranks do with a series of checkpoints in tests: states with DTensors, saved behind their programs."""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from ckpt.background import process
from ckpt.checkpointer import Checkpointer
from ckpt.dcp.files_writer import FilesWriter
from ckpt.errors import CheckpointError
from ckpt.series import parts
from ckpt.series.keep import Keep
from support.shared_states import die, same, state_of

ON_NODE = Path("/proc/self/cwd/local")
"""Another directory for every working directory."""


def spoil(state: dict[str, Any]) -> None:
    """Change every tensor of a state in its place."""
    tensors = [*state["model"].values(), state["parameter"], state["buffer"]]
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()
    state["array"][:] = -1


def train(run: Path, background: Any, losses: list[float]) -> list[int]:
    """Save a state for every loss, and change it at once, while the default group is in use; returns what stays."""
    with Checkpointer(run, background=background, keep=Keep(last=2, lowest="loss")) as checkpoints:
        for step, loss in enumerate(losses, 1):
            state = state_of(step)
            blocked = checkpoints.save(step, state, {"loss": loss})
            spoil(state)
            total = torch.ones(())
            dist.all_reduce(total)
            assert total == dist.get_world_size()
            assert (blocked.save_s > 0) == (background == "none")
        checkpoints.wait()
        assert len(checkpoints.helpers) == (background == "process")
    return checkpoints.steps()


def resume(run: Path, **options: Any) -> tuple[int, bool, dict[str, float], list[int]] | None:
    """Restore: the step, whether this rank has what was saved, the metrics, and the steps that were skipped."""
    state = state_of(0)
    with Checkpointer(run) as checkpoints:
        restored = checkpoints.restore(state, **options)
    if restored is None:
        return None
    expected = state_of(restored.step)
    is_right = all(same(state["model"][name], tensor) for name, tensor in expected["model"].items())
    assert restored.state["step"] == restored.step
    return restored.step, is_right, restored.metrics, list(restored.skipped)


def resume_and_go_on(run: Path) -> list[int]:
    """Restore, and save the next step; returns the steps."""
    state = state_of(0)
    with Checkpointer(run, background="thread") as checkpoints:
        restored = checkpoints.restore(state)
        step = restored.step if restored else 0
        checkpoints.save(step + 1, state_of(step + 1))
    return checkpoints.steps()


def save_while_rank_1_fails(run: Path, failure: Callable[..., Any]) -> tuple[str, list[int]]:
    """Save three times; rank 1 fails the second time, behind its program. Returns the error, and the steps.

    Raises:
        CheckpointError: if rank 1 died.
    """
    with Checkpointer(run, background="thread") as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        with mock.patch.object(FilesWriter, "write_data", failure) if dist.get_rank() == 1 else nullcontext():
            checkpoints.save(2, state_of(2))
            try:
                checkpoints.save(3, state_of(3))
            except CheckpointError as error:
                if failure is die:
                    raise
                message = str(error)
        checkpoints.save(3, state_of(3))
    return message, checkpoints.steps()


def save_while_the_process_of_rank_1_is_killed(run: Path) -> tuple[str, list[int]]:
    """Save three times; what writes rank 1's file the second time is killed. Returns the error, and the steps."""
    call = process._Worker.call

    def killed(worker: process._Worker, message: bytes) -> Any:
        worker.kill()
        return call(worker, message)

    with Checkpointer(run) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        with mock.patch.object(process._Worker, "call", killed) if dist.get_rank() == 1 else nullcontext():
            checkpoints.save(2, state_of(2))
            try:
                checkpoints.wait()
            except CheckpointError as error:
                message = str(error)
        checkpoints.save(3, state_of(3))
    return message, checkpoints.steps()


def save_on_rank_0_only(run: Path) -> None:
    """Save as one does a state without DTensors."""
    with Checkpointer(run, timeout_s=0.2) as checkpoints:
        state = state_of(1)
        if dist.get_rank() == 0:
            checkpoints.save(1, state)


def save_without_memory_on_rank_1(run: Path) -> None:
    """Save where one rank can't copy its shards."""
    with Checkpointer(run, background="thread") as checkpoints:
        state = state_of(1)
        if dist.get_rank() == 1:
            with mock.patch("ckpt.background.snapshot.available_bytes", return_value=0):
                checkpoints.save(1, state)
        else:
            checkpoints.save(1, state)


def train_on_two_levels(run: Path, last: int, local: Path | None = None) -> tuple[int | None, list[int]]:
    """Restore from the nearest level, and save up to a step; returns the step that was restored, and what stays."""
    with Checkpointer(run, local=local or local_of(run), keep=3, background="thread", timeout_s=60) as checkpoints:
        state = state_of(0)
        restored = checkpoints.restore(state)
        if restored:
            expected = state_of(restored.step)
            assert all(same(state["model"][name], tensor) for name, tensor in expected["model"].items())
        for step in range(restored.step + 1 if restored else 1, last + 1):
            state = state_of(step)
            checkpoints.save(step, state)
            spoil(state)
    dist.barrier()  # rank 0 has copied everything
    return restored.step if restored else None, checkpoints.steps()


def local_of(run: Path) -> Path:
    """The node-local directory of a series."""
    return run.with_name("local")


def on_nodes(run: Path, node_of: list[int], work: Callable[..., Any], *arguments: Any) -> Any:
    """Work as if every rank's node had local storage of its own: the same path there is another directory."""
    node = run.with_name(f"node-{node_of[dist.get_rank()]}")
    node.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(node)
    try:
        return work(run, *arguments, local=ON_NODE)
    finally:
        os.chdir(before)


def save_again(run: Path, local: Path) -> list[int]:
    """Save a step twice, with other values the second time; returns the steps."""
    with Checkpointer(run, local=local, background="thread", timeout_s=60) as checkpoints:
        for seed in (1, 2):
            checkpoints.save(1, state_of(seed))
    dist.barrier()
    return checkpoints.steps()


def train_while_a_copy_fails(run: Path, failing: int, local: Path) -> list[bool]:
    """Save four times, while one rank can't copy the first one; returns whether a warning had that."""
    copied, here = parts.copy, dist.get_rank() == failing

    def copy(checkpoint: Path, directory: Path, step: int, pace: Any) -> None:
        if step == 1 and here:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied(checkpoint, directory, step, pace)

    with (
        warnings.catch_warnings(record=True) as seen,
        mock.patch.object(parts, "copy", copy),
        mock.patch.object(parts, "_LATE_S", 0.1),
    ):
        warnings.simplefilter("always")
        with Checkpointer(run, local=local, background="thread", timeout_s=60) as checkpoints:
            for step in range(1, 5):
                checkpoints.save(step, state_of(step))
                checkpoints._wait_for_save()
                time.sleep(0.7)  # more than rank 0 needs to see what the others have copied
    dist.barrier()
    return [any("step 1 is not copied" in str(warning.message) for warning in seen)]
