"""A job with a training loop, start to end: its blocks, its steps, and its saves, right or invalid."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ckpt import registry, strategies
from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.loop import Loop
from jobs.timing_log import LoopSave, TimingLog
from support.loop_jobs import Planned, assert_whole, run_all


@pytest.mark.parametrize("way", ["sync", "thread", "process"])
def test_a_job_that_saves(way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, target: Path) -> None:
    """It has all its blocks, steps and saves; each checkpoint was compared, and is gone; a step contains its save."""
    content = loop_study(way)
    paths = planned(content)
    others = psutil.Process().children()  # of tests before this one
    (log,) = run_all(paths)

    assert_whole(log, Loop.model_validate(content["loop"]))
    assert (way, f"torch_save+way={way}") == (log.header.way, log.header.label)
    assert "idle" == json.loads(log.header.loop)["step"]
    assert 9 == log.header.trials_planned == len(log.saves)
    steps = {(step.block, step.step): step for step in log.steps}
    for save in log.saves:
        step = steps[save.block, save.step]
        blocked_s = save.wait_s + save.snapshot_s + save.call_s
        assert 0 < blocked_s <= step.blocked_s <= step.duration_s
        assert step.start_s <= save.start_s <= step.start_s + step.duration_s
        assert save.wait_s < save.synced_s <= save.commit_s
        assert way != "sync" or (save.commit_s <= blocked_s and save.wait_s == 0)
        assert save.durability.startswith("committed")
        assert (save.snapshot_s > 0) == (way != "sync")
    blocked = {(step.block, step.step) for step in log.steps if step.blocked_s > 0.05}
    assert blocked <= {(save.block, save.step) for save in log.saves}
    for step, after in zip(log.steps, log.steps[1:], strict=False):
        if step.block == after.block:
            assert math.isclose(step.start_s + step.duration_s, after.start_s)
    assert log.provenance["loop_recorder_s"] > 0
    assert log.provenance["loop_cores"] >= 1
    assert [] == list(target.iterdir())
    assert [] == [path for path in paths.slurm.iterdir() if path.suffix == ".meeting"]
    assert set(psutil.Process().children()) <= set(others)


def test_a_loop_that_saves_nothing(loop_study: Callable[..., dict[str, Any]], planned: Planned) -> None:
    """The null test has the same blocks, and no save."""
    content = loop_study("none", blocks=1)
    (log,) = run_all(planned(content))

    assert_whole(log, Loop.model_validate(content["loop"]))
    assert [] == log.saves
    assert {0.0} == {step.blocked_s for step in log.steps}
    assert {0, 2, 5} == {block.every for block in log.blocks}


def test_two_saves_in_flight(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that is due while the one before is under way waits for it, and that is counted as waiting."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(Path(__file__).parent / "strategies")])
    slow = registry.create("torch_save")
    real = type(slow).write_rank

    def write(self: Any, state: Any, path: Path) -> list[Path]:
        time.sleep(1)  # much longer than two steps, on a busy machine too
        return real(self, state, path)

    monkeypatch.setattr(type(slow), "write_rank", write)
    (log,) = run_all(planned(loop_study("thread", every=2, saves=3, blocks=1)))

    assert ["complete"] == [log.header.status]
    first, *others = [save for save in log.saves if save.block == log.saves[-1].block]
    assert first.wait_s == 0
    assert min(save.wait_s for save in others) > 0.3
    assert all(save.commit_s >= save.wait_s + 1 for save in others)
    assert all(save.valid for save in log.saves)


def blocks_in(path: Path) -> int:
    """How many blocks a log has so far."""
    with contextlib.suppress(TimingLogError):
        return len(timing_log.read(path).blocks)
    return 0


@pytest.mark.parametrize("way", ["thread", "process"])
def test_an_interrupted_job_goes_on(
    way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any, target: Path
) -> None:
    """It leaves no process, no file and no half block; the next run does all of the passes that are missing."""
    content = loop_study(way, step_s=0.03, blocks=3)
    paths = planned(content)
    (job,) = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    process = python.start("-m", "jobs", "job", paths.root, job.id)
    try:
        while blocks_in(paths.log(job.id)) < 3:
            assert process.poll() is None, "the job ended before it got there"
            time.sleep(0.01)
        helpers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGUSR2)
        process.wait(timeout=600)
    finally:
        process.kill()
    before = timing_log.read(paths.log(job.id))
    assert "interrupted" == before.header.status
    assert all(block.valid for block in before.blocks)
    assert (len(helpers) == 1) == (way == "process")
    _, alive = psutil.wait_procs(helpers, timeout=300)
    assert [] == alive
    assert [] == list(target.iterdir())
    assert [] == list(paths.slurm.iterdir())

    assert "complete" == run_job(str(paths.root), job.id)
    log = timing_log.read(paths.log(job.id))
    assert before.blocks == log.blocks[: len(before.blocks)]
    again = [block for block in log.blocks if block.run]
    assert {0} == {block.run for block in before.blocks}
    assert {len(before.blocks)} == {block.run for block in again}
    assert [True, True] == [before.blocks[0].opening, again[0].opening]
    missing = 3 - (len(before.blocks) - 1) // 3
    assert {0: missing, 2: missing, 5: missing} == Counter(block.every for block in again[1:])
    assert job.parts == log.progress().trials_done


def ranks_of(python: Any, paths: StudyPaths, job_id: str, count: int, **variables: str) -> list[int]:
    """Run a job's processes, as submitit's local executor would; their exit codes."""
    started = [
        python.start(
            "-m", "jobs", "job", paths.root, job_id,
            SUBMITIT_LOCAL_GLOBALID=str(rank), SUBMITIT_LOCAL_NTASKS=str(count),
            SUBMITIT_LOCAL_NODEID="0", SUBMITIT_LOCAL_JOB_ID="7", **variables,
        )
        for rank in range(count)
    ]  # fmt: skip
    return [process.wait() for process in started]


@pytest.mark.parametrize(
    ("strategy", "way"), [("torch_save", "sync"), ("torch_dcp", "thread"), ("torch_save", "process")]
)
def test_two_ranks(
    strategy: str, way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any, target: Path
) -> None:
    """Ranks meet in every step while they save together in groups of their own; all of their rows are in the log."""
    content = loop_study(way, strategy=strategy, blocks=1) | {"slurm": {"tasks_per_node": 2}}
    paths = planned(content)
    job_id = f"r01-{strategy}+way={way}-here-1x2-idle"
    assert [0, 0] == ranks_of(python, paths, job_id, 2)
    log = timing_log.read(paths.log(job_id))

    assert_whole(log, Loop.model_validate(content["loop"]), ranks=2)
    assert all(step.collective_s > 0 for step in log.steps)
    shares = {save.rank: save.state_bytes for save in log.saves}
    assert log.state["state_bytes"] == sum(shares.values())
    assert [] == list(target.iterdir())
    assert [] == list(paths.slurm.iterdir())


@pytest.mark.parametrize("way", ["thread", "process"])
@pytest.mark.usefixtures("doctored")
def test_a_rank_that_fails(
    way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any, target: Path
) -> None:
    """Where one rank's save fails, all ranks end, and the rows of the block are in the log with the reason."""
    content = loop_study(way, strategy={"name": "doctored", "how": "fails"}) | {"slurm": {"tasks_per_node": 2}}
    paths = planned(content)
    job_id = f"r01-doctored+how=fails+way={way}-here-1x2-idle"
    assert 0 not in ranks_of(python, paths, job_id, 2)
    log = timing_log.read(paths.log(job_id))

    assert "failed" == log.header.status
    assert "the doctor's error" in log.header.error
    failed = [save for save in log.saves if not save.valid]
    assert {0, 1} == {save.rank for save in failed}
    assert all("the doctor's error" in save.reason for save in failed)
    assert [] == list(target.iterdir())


def last_save(log: TimingLog) -> LoopSave:
    """The last row of a save."""
    return log.saves[-1]


def test_progress_of_a_loop(loop_study: Callable[..., dict[str, Any]], planned: Planned) -> None:
    """A log's progress counts blocks, and has the bandwidth of the last save."""
    paths = planned(loop_study("sync"))
    (job,) = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    run_job(str(paths.root), job.id)
    progress = timing_log.read_progress(paths.log(job.id))
    log = timing_log.read(paths.log(job.id))
    last = last_save(log)

    assert job.parts == progress.trials_done == 7
    assert progress.longest_trial_s == pytest.approx(max(block.duration_s for block in log.blocks))
    assert last.state_bytes / last.commit_s / 1e9 == progress.last_bandwidth_gbps
