"""Jobs with a training loop of short idle steps: run in this process, and their logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from jobs import timing_log
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.loop import Loop
from jobs.timing_log import TimingLog

Planned = Callable[[Mapping[str, Any]], StudyPaths]


LOOP = {"step": "idle", "step_s": 0.01, "every": [2, 5], "saves": 2, "blocks": 2, "settle_steps": 1}


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


def in_a_process(python: Any, paths: StudyPaths) -> TimingLog:
    """Run the only job as a user does by hand; its log."""
    (job,) = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    python("-m", "jobs", "job", paths.root, job.id)
    return timing_log.read(paths.log(job.id))
