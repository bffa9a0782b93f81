"""Computes what a second level takes: when checkpoints are safe there, and how far copying them slows steps down.

    call ─ ─ ─ ─ commit here │ step │ step │ step │ ─ ─ commit there
                             └─ steps beside the copy ─┘

The interference κ of a copy: the mean duration of the steps that lie wholly between the commit on the first level and
that on the second, over the median step without checkpoints in the same job, minus 1. What the call of a later save
blocked is not part of a step here, and steps during which a save is under way are left out: they have its interference.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.measures.loop import JobLoop, LoopBlock, LoopSave
from analysis.measures.loop_statistics import Saves, median_amounts
from analysis.measures.statistics import UNKNOWN, Interval

_QUANTITIES = 3


@dataclass(frozen=True, slots=True)
class Drains:
    """What copying the checkpoints of one method, at one interval, to its second level takes: medians over the saves.

    Attributes:
        copied: how many valid saves the second level has.
        failed: how many valid saves it lacks, by reason.
        latency: from the call until the second level has the checkpoint, in s.
        drain: from the commit on the first level until then, in s.
        slowdown: the interference κ; 0.1 is 10 % longer steps. Of the copies beside which a whole step lay.
        steps: how many steps lay beside copies.
    """

    copied: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    latency: Interval = UNKNOWN
    drain: Interval = UNKNOWN
    slowdown: Interval = UNKNOWN
    steps: int = 0


def drains_of(jobs: Sequence[JobLoop], every: int) -> Drains:
    """Return what the copies of one method take, at one interval; the first saves of the jobs are left out.

    Args:
        jobs: of one method.
        every: steps from one save to the next.
    """
    chosen = [
        (job, [save for save in job.saves if save.every == every and save.valid and not save.opening])
        for job in jobs
        if job.reference.steps
    ]
    saves = [save for _, of_job in chosen for save in of_job]
    copied = [save for save in saves if not math.isnan(save.drained_s)]
    failed = Counter(save.drain_problem for save in saves if save.drain_problem)
    if not copied:
        return Drains(failed=dict(sorted(failed.items())))
    slowdown, latency, drain = median_amounts([_amounts(job, of_job) for job, of_job in chosen])
    blocks = {(job.name, block.number): block for job, _ in chosen for block in job.blocks}
    steps = sum(len(beside(blocks[job.name, save.block], save, of_job)) for job, of_job in chosen for save in of_job)
    return Drains(len(copied), dict(sorted(failed.items())), latency, drain, slowdown, steps)


def beside(block: LoopBlock, save: LoopSave, others: Sequence[LoopSave]) -> list[float]:
    """Return the durations, in s, of the steps that lay beside a save's copy, without what calls blocked.

    Args:
        block: of the save.
        save: any; without a copy, nothing lay beside it.
        others: saves of the job; those of this block may have been under way.
    """
    start_s, end_s = save.called_s + save.latency_s, save.called_s + save.drained_s
    pending = [(other.called_s, other.called_s + other.latency_s) for other in others if other.block == save.block]
    return [
        step.duration_s - step.blocked_s
        for step in block.measured
        if start_s <= step.start_s
        and step.end_s <= end_s
        and not any(called_s < step.end_s and step.start_s < committed_s for called_s, committed_s in pending)
    ]


def _amounts(job: JobLoop, saves: Sequence[LoopSave]) -> Saves:
    """The copies' amounts: the slowdown in medians of the reference, which it is one above, and times in s."""
    usual_s = job.reference.median_s
    reference = [
        np.array([step.duration_s for step in block.measured]) / usual_s
        for block in job.blocks
        if block.is_reference and block.measured
    ]
    blocks = {block.number: block for block in job.blocks}
    numbers = sorted({save.block for save in saves})
    most = max((sum(save.block == number for save in saves) for number in numbers), default=0)
    amounts, above = (np.full((_QUANTITIES, len(numbers), most), np.nan) for _ in range(2))
    above[0], above[1:] = 1.0, 0.0
    for row, number in enumerate(numbers):
        for column, save in enumerate(save for save in saves if save.block == number):
            durations_s = beside(blocks[number], save, saves)
            slowdown = float(np.mean(durations_s)) / usual_s - 1 if durations_s else math.nan
            amounts[:, row, column] = slowdown, save.drained_s, save.drained_s - save.latency_s
    return Saves(reference, amounts, above)
