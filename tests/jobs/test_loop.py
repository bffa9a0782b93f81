"""A job with a training loop, start to end: its blocks, its steps, and its saves, right or invalid."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ckpt import registry, strategies
from ckpt.disk import page_cache, writeback
from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.loop import Loop
from jobs.timing_log import LoopSave, TimingLog

Planned = Callable[[Mapping[str, Any]], StudyPaths]

LOOP = {"step": "idle", "step_s": 0.01, "every": [2, 5], "saves": 2, "blocks": 2, "settle_steps": 1}


@pytest.fixture(autouse=True)
def threads() -> Any:
    """A loop sets the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loop_study(tiny: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A study with a loop of short idle steps."""

    def make(*ways: str, strategy: Any = "torch_save", **keys: Any) -> dict[str, Any]:
        quick = {"ceiling": False, "metadata": False}
        return tiny | {"strategies": [strategy], "trials": quick, "loop": LOOP | {"ways": ways} | keys}

    return make


@pytest.fixture
def doctored(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, str]]:
    """The strategy that goes wrong in its second save, in this process and in those that it starts."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(Path(__file__).parent / "strategies")])
    monkeypatch.setattr(registry, "_own_names", lambda: frozenset({"doctored"}))
    registry.create("doctored").saves.clear()  # type: ignore[attr-defined]
    return lambda how: {"name": "doctored", "how": how}


def run_all(paths: StudyPaths) -> list[TimingLog]:
    """Run the study's jobs, and read their logs, in the order of their ways."""
    jobs = sorted(plan.from_json(paths.plan_json.read_text(), "plan.json").jobs, key=lambda job: job.id)
    for job in jobs:
        run_job(str(paths.root), job.id)
    return [timing_log.read(paths.log(job.id)) for job in jobs]


def assert_whole(log: TimingLog, loop: Loop, ranks: int = 1) -> None:
    """The log of a complete job has each block, each of its steps and each save, of every rank."""
    assert ("complete", "") == (log.header.status, log.header.error)
    saves = log.header.way != "none"
    own = [block for block in log.blocks if not block.opening]
    assert Counter({(every, rank): loop.blocks for every in (0, *loop.every) for rank in range(ranks)}) == Counter(
        (block.every, block.rank) for block in own
    )
    assert [saves] * ranks == [block.opening for block in log.blocks if block.block == 0]
    for block in log.blocks:
        numbers = [s.step for s in log.steps if (s.block, s.rank) == (block.block, block.rank)]
        assert list(range(-2, len(numbers) - 2)) == numbers
        least = 1 + loop.settle_steps if block.opening else loop.saves * (block.every or max(loop.every))
        assert len(numbers) - 2 >= least
        due = [0] if block.opening else [block.every * n for n in range(loop.saves)] if block.every and saves else []
        found = [s for s in log.saves if (s.block, s.rank) == (block.block, block.rank)]
        assert [(number, step) for number, step in enumerate(due)] == [(s.save, s.step) for s in found]
    assert [] == [save for save in log.saves if not save.valid]
    assert [] == [block for block in log.blocks if not block.valid]


def block_of_second_save(log: TimingLog) -> int:
    """The number of the block in which the second save of all lies; the first one has a block of its own."""
    return next(block.block for block in log.blocks if block.every and not block.opening)


@pytest.mark.parametrize("way", ["sync", "thread", "process"])
def test_a_job_that_saves(way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, target: Path) -> None:
    """It has all its blocks, steps and saves; each checkpoint was compared, and is gone; a step contains its save."""
    content = loop_study(way)
    paths = planned(content)
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
        assert way != "sync" or save.commit_s <= blocked_s
        assert save.durability.startswith("committed")
        assert (save.snapshot_s > 0) == (way != "sync")
    blocked = {(step.block, step.step) for step in log.steps if step.blocked_s > 0.001}
    assert blocked <= {(save.block, save.step) for save in log.saves}
    for step, after in zip(log.steps, log.steps[1:], strict=False):
        if step.block == after.block:
            assert math.isclose(step.start_s + step.duration_s, after.start_s)
    assert 0 <= log.provenance["loop_recorder_s"] < 0.01
    assert log.provenance["loop_cores"] >= 1
    assert [] == list(target.iterdir())
    assert [] == [path for path in paths.slurm.iterdir() if path.suffix == ".meeting"]
    assert [] == psutil.Process().children()


def test_a_loop_that_saves_nothing(loop_study: Callable[..., dict[str, Any]], planned: Planned) -> None:
    """The null test has the same blocks, and no save."""
    content = loop_study("none", blocks=1)
    (log,) = run_all(planned(content))

    assert_whole(log, Loop.model_validate(content["loop"]))
    assert [] == log.saves
    assert {0.0} == {round(step.blocked_s, 3) for step in log.steps}
    assert {0, 2, 5} == {block.every for block in log.blocks}


def test_two_saves_in_flight(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that is due while the one before is under way waits for it, and that is counted as waiting."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(Path(__file__).parent / "strategies")])
    slow = registry.create("torch_save")
    real = type(slow).write_rank

    def write(self: Any, state: Any, path: Path) -> list[Path]:
        time.sleep(0.1)
        return real(self, state, path)

    monkeypatch.setattr(type(slow), "write_rank", write)
    (log,) = run_all(planned(loop_study("thread", every=2, saves=3, blocks=1)))

    assert ["complete"] == [log.header.status]
    first, *others = [save for save in log.saves if save.block == log.saves[-1].block]
    assert first.wait_s < 0.05 < min(save.wait_s for save in others)
    assert all(save.commit_s >= save.wait_s + 0.1 for save in others)
    assert all(save.valid for save in log.saves)


@pytest.mark.parametrize(
    ("how", "way", "reason"),
    [
        ("torn", "sync", "loaded state differs: it can't be loaded (CheckpointError: can't load "),
        ("torn", "thread", "loaded state differs: it can't be loaded (CheckpointError: can't load "),
        ("swallows", "thread", "loaded state differs: it can't be loaded (CheckpointError: "),
        ("later", "library", "loaded state differs: "),
    ],
)
def test_a_wrong_checkpoint(
    how: str,
    way: str,
    reason: str,
    loop_study: Callable[..., dict[str, Any]],
    doctored: Callable[[str], Any],
    planned: Planned,
) -> None:
    """What isn't the state at its call is an invalid row with its reason; the job goes on, its other rows are valid."""
    (log,) = run_all(planned(loop_study(way, strategy=doctored(how))))

    assert "complete" == log.header.status
    wrong = [save for save in log.saves if not save.valid]
    assert [(block_of_second_save(log), 0)] == [(save.block, save.save) for save in wrong]
    assert wrong[0].reason.startswith(reason), wrong[0].reason
    assert all(block.valid for block in log.blocks)
    assert 9 == len(log.saves)


def test_a_checkpoint_reported_before_it_is_durable(
    loop_study: Callable[..., dict[str, Any]],
    doctored: Callable[[str], Any],
    planned: Planned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A strategy that claims to sync its files, and doesn't, has dirty pages at its commit: the save is invalid."""
    dirty = [0, 3]
    monkeypatch.setattr(page_cache, "dirty_pages", lambda *_: dirty.pop(0) if dirty else 0)
    (log,) = run_all(planned(loop_study("thread", strategy=doctored("undurable"), blocks=1)))

    assert "complete" == log.header.status
    wrong = [(save.dirty_pages, save.reason) for save in log.saves if not save.valid]
    assert [(3, "not durable: 3 pages were not on storage when it had ended")] == wrong


def test_what_the_kernel_could_not_write(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of writeback that no program got makes the saves of its block invalid."""
    errors = [OSError(5, "Input/output error")]

    def report(_: int) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(writeback, "raise_errors", report)
    (log,) = run_all(planned(loop_study("sync", blocks=1)))

    wrong = [save for save in log.saves if not save.valid]
    assert {0} == {save.block for save in wrong}
    assert "not durable: [Errno 5] Input/output error" == wrong[0].reason


@pytest.mark.parametrize("way", ["sync", "thread", "library"])
def test_a_save_that_fails(
    way: str, loop_study: Callable[..., dict[str, Any]], doctored: Callable[[str], Any], planned: Planned, target: Path
) -> None:
    """The job fails with the reason; the rows of its block are in the log, marked; a later run does what is missing."""
    content = loop_study(way, strategy=doctored("fails"))
    paths = planned(content)
    (log,) = run_all(paths)

    reason = "OSError: [Errno 5] the doctor's error"
    assert ("failed", f"TrialError: {reason}") == (log.header.status, log.header.error)
    *before, last = log.blocks
    assert all(block.valid for block in before)
    assert (block_of_second_save(log), False, reason) == (last.block, last.valid, last.reason)
    failed = [save for save in log.saves if not save.valid]
    assert [(last.block, reason, True)] == [(save.block, save.reason, math.isnan(save.commit_s)) for save in failed]
    assert [] == list(target.iterdir())

    (log,) = run_all(paths)
    assert ("complete", "") == (log.header.status, log.header.error)
    loop = Loop.model_validate(content["loop"])
    own = [block for block in log.blocks if block.valid and not block.opening]
    assert dict.fromkeys((0, *loop.every), loop.blocks) == Counter(block.every for block in own)


def in_a_process(python: Any, paths: StudyPaths) -> TimingLog:
    """Run the only job as a user does by hand; its log."""
    (job,) = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    python("-m", "jobs", "job", paths.root, job.id)
    return timing_log.read(paths.log(job.id))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("fails", "OSError: [Errno 5] the doctor's error"),
        ("killed", "was ended by SIGKILL"),
    ],
)
@pytest.mark.usefixtures("doctored")
def test_a_process_that_does_not_save(
    how: str, reason: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any, target: Path
) -> None:
    """An error in the process that saves, and its death, fail the job with the reason; nothing is left."""
    paths = planned(loop_study("process", strategy={"name": "doctored", "how": how}))
    log = in_a_process(python, paths)

    assert "failed" == log.header.status
    assert reason in log.header.error
    (failed,) = [save for save in log.saves if not save.valid]
    assert reason in failed.reason
    assert [] == list(target.iterdir())
    assert [] == list(paths.slurm.iterdir())


@pytest.mark.usefixtures("doctored")
def test_a_process_that_saves_something_wrong(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any
) -> None:
    """What a process wrote is compared as well."""
    log = in_a_process(python, planned(loop_study("process", strategy={"name": "doctored", "how": "torn"})))

    assert "complete" == log.header.status
    assert [(block_of_second_save(log), 0)] == [(save.block, save.save) for save in log.saves if not save.valid]


def blocks_in(path: Path) -> int:
    """How many blocks a log has so far."""
    with contextlib.suppress(TimingLogError):
        return len(timing_log.read(path).blocks)
    return 0


@pytest.mark.parametrize("way", ["thread", "process"])
def test_an_interrupted_job_goes_on(
    way: str, loop_study: Callable[..., dict[str, Any]], planned: Planned, python: Any, target: Path
) -> None:
    """It leaves no process, no file and no half block; the next run does the blocks that are missing."""
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
        process.wait(timeout=60)
    finally:
        process.kill()
    before = timing_log.read(paths.log(job.id))
    assert "interrupted" == before.header.status
    assert all(block.valid for block in before.blocks)
    assert (len(helpers) == 1) == (way == "process")
    _, alive = psutil.wait_procs(helpers, timeout=30)
    assert [] == alive
    assert [] == list(target.iterdir())
    assert [] == list(paths.slurm.iterdir())

    log = in_a_process(python, paths)
    assert "complete" == log.header.status
    assert before.blocks == log.blocks[: len(before.blocks)]
    again = [block for block in log.blocks if block.opening]
    assert [0, len(before.blocks)] == [block.block for block in again]
    loop = Loop.model_validate(content["loop"])
    assert dict.fromkeys((0, *loop.every), 3) == Counter(b.every for b in log.blocks if not b.opening)


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


@pytest.mark.parametrize("way", ["sync", "thread", "process"])
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
    last = last_save(timing_log.read(paths.log(job.id)))

    assert job.parts == progress.trials_done == 7
    assert last.state_bytes / last.commit_s / 1e9 == progress.last_bandwidth_gbps
