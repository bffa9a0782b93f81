"""The order of a loop's blocks: pure, the same on all ranks and in a job that is started again."""

from __future__ import annotations

import random

from jobs.plan.loop import NONE, Loop

OFF = 0
"""`every` of a block without checkpoints: the reference."""


def order(loop: Loop, job_id: str) -> list[int]:
    """Steps between saves in every block, in the order of a job: every kind once, shuffled, and so on again."""
    shuffler = random.Random(job_id)  # noqa: S311  # a shuffle, no secret
    blocks: list[int] = []
    for _ in range(loop.blocks):
        kinds = [OFF, *loop.every]
        shuffler.shuffle(kinds)
        blocks += kinds
    return blocks


def steps_of(loop: Loop, every: int) -> int:
    """The steps of a block before those that wait for its last save; a reference block is as long as the longest."""
    return loop.saves * (every or max(loop.every))


def saves_at(loop: Loop, way: str, every: int) -> frozenset[int]:
    """The steps of a block that begin with a save."""
    if way == NONE or every == OFF:
        return frozenset()
    return frozenset(number * every for number in range(loop.saves))
