"""A job with a training loop whose saves go wrong or fail: each is invalid with its reason, and nothing is left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import page_cache, writeback
from jobs.plan.loop import Loop
from support.loop_jobs import Planned, block_of_second_save, in_a_process, run_all


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
    """The job fails with the reason; its block is in the log, marked; a later run begins that pass of blocks again."""
    content = loop_study(way, strategy=doctored("fails"))
    paths = planned(content)
    (log,) = run_all(paths)

    reason = "call: OSError: [Errno 5] the doctor's error"
    *before, last = log.blocks
    assert ("failed", f"TrialError: block {last.block}: {reason}") == (log.header.status, log.header.error)
    assert all(block.valid for block in before)
    assert (block_of_second_save(log), False, reason) == (last.block, last.valid, last.reason)
    failed = [save for save in log.saves if not save.valid]
    assert [(last.block, reason, True)] == [(save.block, save.reason, math.isnan(save.commit_s)) for save in failed]
    assert [] == list(target.iterdir())

    (log,) = run_all(paths)
    assert ("complete", "") == (log.header.status, log.header.error)
    loop = Loop.model_validate(content["loop"])
    own = [block for block in log.blocks if block.run and block.valid and not block.opening]
    assert dict.fromkeys((0, *loop.every), loop.blocks) == Counter(block.every for block in own)


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
