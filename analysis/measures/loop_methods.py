"""Adds to the methods of a setting what they cost the training loop, and says how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.measures.caveats import Caveat, Kind
from analysis.measures.loop import JobLoop
from analysis.measures.loop_cost import loop_cost, with_verdicts
from analysis.measures.lost import LoopCost
from analysis.measures.method import Method

FEWEST_BLOCKS = 5

_WIDEST_BAND = 0.2
"""The band that holds 95 % of the reference's steps, as a fraction of their median."""

_MOST_SKEWED = 0.02
"""How far the mean step may exceed the median."""

_MOST_RECORDED = 0.01
"""The largest cost of recording, as a fraction of a step."""

_MOST_UNSURE = 0.1
"""The largest difference of clocks, as a fraction of a step."""


_MOST_CUT = 0.1
"""The largest part of the saves whose tail may end out of the band: of steps as without checkpoints, 5 % do."""


def with_loops(
    methods: Sequence[Method], jobs: pd.DataFrame, loops: Mapping[tuple[str, str], Sequence[JobLoop]]
) -> tuple[Method, ...]:
    """Add the lost time of the methods of one setting.

    Args:
        methods: of the setting.
        jobs: its rows of `Results.jobs`.
        loops: the loops of all jobs, by study and job id: one for each run.
    """
    by_label: dict[str, list[JobLoop]] = {}
    for study, job_id, label in zip(jobs["study"], jobs["job_id"], jobs["label"], strict=True):
        if (study, job_id) in loops:
            by_label.setdefault(str(label), []).extend(loops[study, job_id])
    labels = [method.label for method in methods if method.label in by_label]
    costs = dict(zip(labels, with_verdicts([loop_cost(by_label[label]) for label in labels]), strict=True))
    return tuple(
        replace(method, loop=costs[method.label], problems=(*method.problems, *_invalid(costs[method.label])))
        if method.label in costs
        else method
        for method in methods
    )


def _invalid(cost: LoopCost) -> Iterator[str]:
    for job in cost.jobs:
        reasons = [(save.opening, save.reason) for save in job.saves if not save.valid]
        for opening, reason in sorted(set(reasons)):
            count = reasons.count((opening, reason))
            yield f"{job.name}: {count} invalid {'first ' if opening else ''}save(s) of the loop: {reason}"
        reasons = [(False, block.reason) for block in job.blocks if not block.valid and not block.every]
        for _, reason in sorted(set(reasons)):
            count = reasons.count((False, reason))
            yield f"{job.name}: {count} invalid block(s) without checkpoints: {reason}"


def about_loops(methods: Sequence[Method]) -> Iterator[Caveat]:
    """Check the loops of the methods of one setting."""
    for method in methods:
        if method.loop:
            yield from _of_method(method.label, method.loop)
            for job in method.loop.jobs:
                yield from _of_job(job)


def _of_method(label: str, cost: LoopCost) -> Iterator[Caveat]:
    for at in cost.at:
        where = f"{label}, a save every {at.every} steps"
        if at.blocks < FEWEST_BLOCKS:
            yield Caveat(Kind.FEW_BLOCKS, where, at.blocks)
        if at.waited:
            yield Caveat(
                Kind.WAITING_SAVES, where, at.waited,
                {"saves": at.saves, "latency": cost.shortest_s, "interval": at.interval_s},
            )  # fmt: skip
        if at.cut > _MOST_CUT * at.saves:
            yield Caveat(Kind.CUT_TAILS, where, at.cut, {"saves": at.saves})


def _of_job(job: JobLoop) -> Iterator[Caveat]:
    reference = job.reference
    if not reference.median_s > 0:
        return
    width = (reference.high_s - reference.low_s) / reference.median_s
    if width > _WIDEST_BAND:
        yield Caveat(Kind.UNSTABLE_REFERENCE, job.name, width)
    durations = [step.duration_s for block in job.blocks if block.is_reference for step in block.measured]
    skew = float(np.mean(durations)) / reference.median_s - 1
    if skew > _MOST_SKEWED:
        yield Caveat(Kind.SKEWED_REFERENCE, job.name, skew)
    if not math.isnan(job.recorder_s) and job.recorder_s > _MOST_RECORDED * reference.median_s:
        yield Caveat(Kind.SHORT_STEPS, job.name, job.recorder_s / reference.median_s)
    if job.clock_uncertainty_s > _MOST_UNSURE * reference.median_s:
        yield Caveat(Kind.UNSURE_CLOCKS, job.name, job.clock_uncertainty_s, {"step": reference.median_s})
