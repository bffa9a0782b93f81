"""How far a job with a training loop is, however often it is interrupted: in passes over all kinds of blocks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from jobs.node.loop import blocks
from jobs.node.recorder import Progress
from jobs.plan.loop import Loop
from jobs.plan.study import Trials
from jobs.timing_log import Block, TimingLog
from support.frozen_log import version_1

LOOP = Loop.model_validate({"every": [2, 5], "blocks": 3})
PLANNED = LOOP.blocks_of("sync")


def row(number: int, run: int, every: int, *, opening: bool = False, valid: bool = True) -> Block:
    """A block of one rank."""
    return Block(
        block=number, rank=0, every=every, opening=opening, start_s=0.0, duration_s=1.0, peak_memory_bytes=-1,
        end_memory_bytes=-1, threads=-1, descriptors=-1, cpu_s=1.0, helper_cpu_s=0.0, valid=valid, reason="", run=run,
    )  # fmt: skip


def go_on(log: TimingLog, count: int, *, valid: bool = True) -> bool:
    """Add up to so many blocks, the last of them perhaps a failed one; returns whether the job is complete."""
    progress = Progress.of(log, Trials(), LOOP)
    missing = blocks.order(LOOP, "a job")[progress.blocks_done :]
    run = progress.next_block
    kinds = [5, *missing][:count]
    log.blocks += [
        row(run + place, run, every, opening=not place, valid=valid or place < len(kinds) - 1)
        for place, every in enumerate(kinds)
    ]
    return valid and count > len(missing)


@given(some.lists(some.tuples(some.integers(0, 12), some.booleans()), max_size=5))
def test_a_job_that_is_interrupted_again_and_again(runs: list[tuple[int, bool]]) -> None:
    """Every kind has as many blocks as asked for in passes that one process began and ended, and no block is missing
    from the progress that a user sees, nor counted twice.
    """
    log = version_1()
    log.samples = []
    complete = any(go_on(log, count, valid=valid) for count, valid in runs) or go_on(log, 99)
    assert complete
    whole: Counter[int] = Counter()
    for run in {block.run for block in log.blocks}:
        own = [block.every for block in log.blocks if block.run == run and block.valid and not block.opening]
        whole.update(own[: len(own) - len(own) % 3])
    assert {0: 3, 2: 3, 5: 3} == whole
    assert PLANNED == log.progress().trials_done


def test_a_log_of_an_earlier_release() -> None:
    """Its blocks belong to no run: all of them count as one."""
    log = version_1()
    log.samples = []
    log.blocks = [row(number, 0, every) for number, every in enumerate([0, 2, 5, 5])]
    assert (3, 4) == (Progress.of(log, Trials(), LOOP).blocks_done, log.progress().trials_done)
