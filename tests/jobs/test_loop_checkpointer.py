"""A training loop that saves by `ckpt.Checkpointer`, on one level or two: its rows, its proofs, and what it leaves."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ckpt.disk import copying
from ckpt.series import draining
from jobs import timing_log
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.loop import Loop
from jobs.timing_log import TimingLog
from support.loop_jobs import Planned, assert_whole, block_of_second_save, run_all
from support.waiting import until

SHORT = {"every": [2], "blocks": 1}

_BYTES_PER_S = 2e5


@pytest.fixture
def levels(target: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The directories of the target that drains, and of the one to which it does."""
    shared = tmp_path / "shared"
    shared.mkdir()
    return target, shared


def left_in(levels: tuple[Path, Path]) -> list[Path]:
    """What lies on either level."""
    return [path for level in levels for path in level.iterdir()]


@pytest.fixture
def two_levels(loop_study: Callable[..., dict[str, Any]], levels: tuple[Path, Path]) -> Callable[..., dict[str, Any]]:
    """A study of jobs on two levels; and of those on the second one alone."""

    def make(**keys: Any) -> dict[str, Any]:
        content = loop_study("checkpointer", **SHORT)
        here = content["targets"]["here"] | {"drain_to": "there"} | keys
        return content | {"targets": {"here": here, "there": {"path": str(levels[1]), "allow_tmpfs": True}}}

    return make


def run_on(target: str, paths: StudyPaths) -> TimingLog:
    """Run the only job on a target; its log."""
    (job,) = [job for job in plan.from_json(paths.plan_json.read_text(), "plan.json").jobs if job.target == target]
    run_job(str(paths.root), job.id)
    return timing_log.read(paths.log(job.id))


def test_one_level(loop_study: Callable[..., dict[str, Any]], planned: Planned, target: Path) -> None:
    """It has all blocks, steps and saves; each checkpoint was compared, and is gone, and so is the process."""
    content = loop_study("checkpointer")
    paths = planned(content)
    others = psutil.Process().children()  # of tests before this one
    (log,) = run_all(paths)

    assert_whole(log, Loop.model_validate(content["loop"]))
    assert "torch_save+way=checkpointer" == log.header.label
    steps = {(step.block, step.step): step for step in log.steps}
    for save in log.saves:
        blocked_s = save.wait_s + save.snapshot_s + save.call_s
        assert 0 < save.snapshot_s < blocked_s <= steps[save.block, save.step].blocked_s
        assert save.wait_s < save.commit_s
        assert math.isnan(save.drained_s)
        assert "" == save.drain_problem
        assert save.cpu_s > 0
    assert [] == list(target.iterdir())
    assert [] == list(paths.slurm.iterdir())
    assert set(psutil.Process().children()) <= set(others)


def test_two_levels(two_levels: Callable[..., dict[str, Any]], planned: Planned, levels: tuple[Path, Path]) -> None:
    """A checkpoint is committed here, and then there; its block lasts until the last one is; nothing is left."""
    content = two_levels(drain_bytes_per_s=_BYTES_PER_S, prepare="touch {directory}/prepared")
    content["targets"]["there"]["prepare"] = "touch {directory}/prepared-too"
    paths = planned(content)
    log, shared_only = run_on("here", paths), run_on("there", paths)
    for one in (log, shared_only):
        assert_whole(one, Loop.model_validate(content["loop"]))

    least_s = log.state["state_bytes"] / _BYTES_PER_S
    for save in log.saves:
        assert save.drained_s > save.commit_s + 0.9 * least_s
        assert "" == save.drain_problem
        assert save.start_s + save.drained_s <= max(
            s.start_s + s.duration_s for s in log.steps if s.block == save.block
        )
    assert ["prepared-too", "prepared"] == [Path(row.command.split()[-1]).name for row in log.hooks]
    assert "there" == log.storage["drain_to"]
    assert all(math.isnan(save.drained_s) for save in shared_only.saves)
    assert all(math.isnan(save.cpu_s) for save in log.saves)
    assert all(save.cpu_s > 0 for save in shared_only.saves)
    assert [] == left_in(levels)


@pytest.mark.parametrize(
    ("number", "drain_bytes_per_s", "blocks"),
    [(signal.SIGTERM, 10, 0), (signal.SIGINT, 8e3, 1)],
    ids=["a drain of an hour", "after a block"],
)
def test_an_interrupt_in_a_drain(
    number: signal.Signals,
    drain_bytes_per_s: float,
    blocks: int,
    two_levels: Callable[..., dict[str, Any]],
    planned: Planned,
    python: Any,
    levels: tuple[Path, Path],
) -> None:
    """The job ends without waiting for the copy, with no process and no file left; its log keeps the blocks before."""
    paths = planned(two_levels(drain_bytes_per_s=drain_bytes_per_s))
    (planned_job,) = [job for job in plan.from_json(paths.plan_json.read_text(), "").jobs if job.target == "here"]
    log = paths.log(planned_job.id)
    job = python.start("-m", "jobs", "job", paths.root, planned_job.id)
    try:
        until(lambda: job.poll() is not None or (is_draining(levels[1]) and len(timing_log.read(log).blocks) >= blocks))
        helpers = psutil.Process(job.pid).children(recursive=True)
        assert helpers
        job.send_signal(number)
        assert os.EX_TEMPFAIL == job.wait(timeout=300)
        assert [] == psutil.wait_procs(helpers, timeout=60)[1]
    finally:
        job.kill()

    interrupted = timing_log.read(log)
    assert "interrupted" == interrupted.header.status
    assert number.name in interrupted.header.error
    assert blocks <= len(interrupted.blocks)
    assert all(block.valid for block in interrupted.blocks)
    assert all(save.valid and save.drained_s > save.commit_s for save in interrupted.saves)
    assert [] == [*left_in(levels), *paths.slurm.iterdir()]
    if blocks:
        continued = run_on("here", paths)
        assert "complete" == continued.header.status
        assert repr(interrupted.steps) == repr(continued.steps[: len(interrupted.steps)])


def is_draining(shared: Path) -> bool:
    """Whether a file of a checkpoint is being copied there."""
    return any(shared.glob("ckpt-*/checkpoints/series/.partial-*/*"))


def flip(path: Path) -> None:
    """Change the byte in the middle of a file, which is a tensor's."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_copy_that_is_not_the_state(
    two_levels: Callable[..., dict[str, Any]], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the row invalid; the reason names the level."""
    copied: list[Path] = []

    def copy(source: Path, copy: Path, *rest: Any) -> None:
        copying.copy_files(source, copy, *rest)
        copied.append(copy)
        if len(copied) == 2:
            flip(max((file for file in copy.iterdir()), key=lambda file: file.stat().st_size))

    monkeypatch.setattr(draining, "copy_files", copy)
    log = run_on("here", planned(two_levels()))
    assert "complete" == log.header.status
    (wrong,) = [save for save in log.saves if not save.valid]
    assert (block_of_second_save(log), 0) == (wrong.block, wrong.save)
    assert wrong.reason.startswith("on the second level, loaded state differs: "), wrong.reason
    assert wrong.drained_s > wrong.commit_s


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_copy_that_fails(
    two_levels: Callable[..., dict[str, Any]],
    planned: Planned,
    levels: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The save is committed and valid all the same, its row has the reason; the job goes on, and its later copies."""
    failures = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def copy(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        copying.copy_files(*arguments)

    monkeypatch.setattr(draining, "copy_files", copy)
    log = run_on("here", planned(two_levels()))
    assert ("complete", "") == (log.header.status, log.header.error)
    assert all(save.valid and save.commit_s > 0 for save in log.saves)
    first, *others = log.saves
    assert math.isnan(first.drained_s)
    assert "No space left" in first.drain_problem
    assert all(save.drained_s > save.commit_s and not save.drain_problem for save in others)
    assert [] == left_in(levels)


@pytest.mark.filterwarnings("ignore::ckpt.errors.CheckpointWarning")
def test_a_save_that_fails(
    two_levels: Callable[..., dict[str, Any]],
    planned: Planned,
    python: Any,
    doctored: Callable[[str], Any],
    levels: tuple[Path, Path],
) -> None:
    """The job fails with the reason, and leaves nothing on either level."""
    content = two_levels() | {"strategies": [doctored("fails")]}
    paths = planned(content)
    python("-m", "jobs", "job", paths.root, "r01-doctored+how=fails+way=checkpointer-here-1x1-idle")
    log = timing_log.read(paths.log("r01-doctored+how=fails+way=checkpointer-here-1x1-idle"))
    assert "failed" == log.header.status
    assert "the doctor's error" in log.header.error
    (failed,) = [save for save in log.saves if not save.valid]
    assert math.isnan(failed.commit_s)
    assert math.isnan(failed.drained_s)
    assert [] == left_in(levels)
