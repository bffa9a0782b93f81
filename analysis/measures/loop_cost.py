"""Computes what a method costs the training loop: lost time and its parts per save, with intervals and verdicts.

The verdicts compare blocks with checkpoints with blocks without: in the latter, windows of as many steps, at the same
steps, are taken for what they would be if they were saves'. So what noise does to windows is on both sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.measures.differences import SIGNIFICANT_P
from analysis.measures.drains import drains_of
from analysis.measures.loop import BLOCKED, JobLoop, LoopBlock, LoopSave, Part
from analysis.measures.loop_jobs import RESOLVED
from analysis.measures.loop_statistics import Exchangeable, Saves, least_p, median_amounts, permutation_ps
from analysis.measures.loop_windows import NOTHING_BLOCKED, Window, parts_of, tail_end
from analysis.measures.lost import (
    NOT_SIGNIFICANT,
    SIGNIFICANT,
    TOO_FEW_BLOCKS,
    AboveReference,
    AtInterval,
    BlockMeans,
    FirstSave,
    LoopCost,
    Tested,
    Unhurried,
    unhurried_saves,
)
from analysis.measures.statistics import Floats

NO_SAVES = "none"
"""The way of the null test: blocks with checkpoints on have none."""

_PARTS = tuple(Part)


@dataclass(frozen=True, slots=True)
class _Counted:
    """One save, or a window of as many steps in a block without: seconds by part, and steps."""

    parts: Mapping[Part, float]
    pending_steps: int
    tail_steps: int
    latency_s: float = math.nan

    def amounts(self) -> list[float]:
        """Lost, the parts, what blocked, and the latency, in s."""
        blocked_s = math.fsum(self.parts[part] for part in BLOCKED)
        return [math.fsum(self.parts.values()), *(self.parts[part] for part in _PARTS), blocked_s, self.latency_s]

    def steps(self) -> list[float]:
        """How many of the reference's medians an amount is above."""
        of_part = {Part.INTERFERENCE: self.pending_steps, Part.TAIL: self.tail_steps}
        return [self.pending_steps + self.tail_steps, *(of_part.get(part, 0) for part in _PARTS), 0, 0]


_QUANTITIES = len(_PARTS) + 3


def loop_cost(jobs: Sequence[JobLoop]) -> LoopCost:
    """Compute what one method costs, from all of its jobs that left a log; verdicts aren't corrected yet.

    Args:
        jobs: at least one; all of one loop.
    """
    ordered = sorted(jobs, key=lambda job: job.job_id)
    medians = [job.reference.median_s for job in ordered if job.reference.steps]
    step_s = float(np.median(medians)) if medians else math.nan
    invalid = Counter(save.reason for job in ordered for save in job.saves if not save.valid)
    return LoopCost(
        way=ordered[0].way,
        spec=ordered[0].spec,
        step_s=step_s,
        jobs=tuple(ordered),
        at=tuple(_at_interval(ordered, every, step_s) for every in sorted(set(ordered[0].spec.every))),
        unhurried=_unhurried(ordered),
        first=_first(ordered),
        above=_above(ordered),
        invalid=dict(sorted(invalid.items())),
    )


def with_verdicts(costs: Sequence[LoopCost]) -> list[LoopCost]:
    """Correct the ps of all methods and intervals of a setting together, as Benjamini and Hochberg, and judge.

    Lost times are one family, and every part is another.
    """
    floors_s = [RESOLVED * cost.step_s for cost in costs for _ in cost.at]
    lost = _judged([at.lost for cost in costs for at in cost.at], [0.0] * len(floors_s))
    parts = {
        part: _judged(
            [at.parts[part] for cost in costs for at in cost.at], floors_s if part in BLOCKED else [0.0] * len(floors_s)
        )
        for part in _PARTS
    }
    return [
        replace(
            cost,
            at=tuple(
                replace(at, lost=next(lost), parts={part: next(parts[part]) for part in _PARTS}) for at in cost.at
            ),
        )
        for cost in costs
    ]  # fmt: skip


def _judged(amounts: Sequence[Tested], floors_s: Sequence[float]) -> Iterator[Tested]:
    ps = [amount.p for amount in amounts if amount.p < 1]  # 1: a method has no such part, and nothing is tested
    corrected = iter(stats.false_discovery_control(ps) if ps else ())
    for amount, floor_s in zip(amounts, floors_s, strict=True):
        p = float(next(corrected)) if amount.p < 1 else amount.p
        yield replace(amount, p=p, verdict=_verdict(amount, p, floor_s))


def _verdict(amount: Tested, p: float, floor_s: float) -> str:
    interval = amount.interval
    if math.isnan(interval.estimate) or max(map(abs, (interval.low, interval.high))) <= floor_s:
        return ""
    if math.isnan(p) or math.isnan(interval.low):
        return TOO_FEW_BLOCKS
    if interval.low <= 0 <= interval.high:
        return NOT_SIGNIFICANT
    if p < SIGNIFICANT_P:
        return SIGNIFICANT
    return TOO_FEW_BLOCKS if amount.p <= amount.least_p else NOT_SIGNIFICANT  # they differ as clearly as they could


def _at_interval(jobs: Sequence[JobLoop], every: int, step_s: float) -> AtInterval:
    by_job = [(job, _counted(job, every)) for job in jobs]
    lost, *others = median_amounts([_saves(job, list(blocks.values())) for job, blocks in by_job])
    exchangeable = [_exchangeable(job, every, list(blocks.values())) for job, blocks in by_job]
    ps, least = permutation_ps(exchangeable), least_p(exchangeable)
    saves = [save for job in jobs for save in job.saves if save.every == every and not save.opening]
    means = [(float(np.mean([save.amounts()[0] for save in block])), job)
             for job, blocks in by_job for block in blocks.values()]  # fmt: skip
    return AtInterval(
        every=every,
        interval_s=every * step_s,
        saves=sum(save.valid for save in saves),
        invalid=sum(not save.valid for save in saves),
        waited=sum(save.valid and save.waited for save in saves),
        cut=sum(save.valid and save.tail_cut for save in saves),
        blocks=len(means),
        lost=Tested(lost, ps[0], least_p=least),
        parts={part: Tested(others[n], ps[n + 1], least_p=least) for n, part in enumerate(_PARTS)},
        blocked=others[-2],
        latency=others[-1],
        drains=drains_of(jobs, every),
        means=BlockMeans(
            tuple(lost_s for lost_s, _ in means),
            tuple(job.job_id for _, job in means),
            tuple(job.round for _, job in means),
            lost,
        ),
    )


def _counted(job: JobLoop, every: int) -> dict[int, list[_Counted]]:
    """Return the valid saves of the blocks with an interval; of a loop that saves nothing, windows in their places."""
    chosen = [block for block in job.blocks if block.every == every and block.valid and not block.opening]
    if not job.reference.steps:
        return {}
    if job.way == NO_SAVES:
        return {block.number: _placebos(block, job, every, every) for block in chosen}
    return _by_block(save for save in job.saves if save.valid and not save.opening and save.every == every)


def _by_block(saves: Iterable[LoopSave]) -> dict[int, list[_Counted]]:
    blocks: dict[int, list[_Counted]] = {}
    for save in saves:
        counted = _Counted(save.parts, save.pending_steps, save.tail_steps, save.latency_s)
        blocks.setdefault(save.block, []).append(counted)
    return blocks


def _placebos(block: LoopBlock, job: JobLoop, every: int, pending: int) -> list[_Counted]:
    """Return the windows that saves would have in a block, if they were pending for so many steps."""
    steps = block.measured
    windows = []
    for first in range(0, min(len(steps), every * job.spec.saves), every):
        bound = min(first + every, len(steps))
        commit = min(first + pending, bound) - 1
        counted = Window(first, commit, tail_end(steps, commit, bound, job.reference))
        parts = parts_of(steps, counted, NOTHING_BLOCKED, job.reference)
        windows.append(_Counted(parts, commit + 1 - first, counted.end - commit - 1))
    return windows


def _saves(job: JobLoop, blocks: Sequence[Sequence[_Counted]]) -> Saves:
    reference = [
        np.array([step.duration_s for step in block.measured])
        for block in job.blocks
        if block.is_reference and block.measured
    ]
    most = max(map(len, blocks), default=0)
    amounts, steps = (np.full((_QUANTITIES, len(blocks), most), np.nan) for _ in range(2))
    for number, block in enumerate(blocks):
        for place, save in enumerate(block):
            amounts[:, number, place], steps[:, number, place] = save.amounts(), save.steps()
    return Saves(reference, amounts, steps)


def _exchangeable(job: JobLoop, every: int, blocks: Sequence[Sequence[_Counted]]) -> Exchangeable:
    pending = [save.pending_steps for block in blocks for save in block]
    usual = max(1, round(float(np.median(pending)))) if pending else every
    off = [_placebos(block, job, every, usual) for block in job.blocks if block.is_reference and block.measured]
    floor_s = RESOLVED * job.reference.median_s
    return Exchangeable(*(_means(side, floor_s) for side in (blocks, off)))


def _means(blocks: Sequence[Sequence[_Counted]], floor_s: float) -> Floats:
    """Return the mean of every amount but the latency, by block; what a clock reads for nothing is nothing."""
    means = np.array([np.mean([save.amounts()[:-1] for save in block], axis=0) for block in blocks])
    means = means.reshape(len(blocks), _QUANTITIES - 1)
    clocked = means[:, 1 : 1 + len(BLOCKED)]
    clocked[np.abs(clocked) < floor_s] = 0.0
    return means


def _unhurried(jobs: Sequence[JobLoop]) -> Unhurried:
    by_job = [[_without_wait(save) for save in saves] for saves in unhurried_saves(jobs)]
    if not any(by_job):
        return Unhurried()
    blocks = [list(_by_block(saves).values()) for saves in by_job]
    medians = median_amounts([_saves(job, of_job) for job, of_job in zip(jobs, blocks, strict=True)])
    return Unhurried(sum(map(len, by_job)), medians[0], medians[-2], medians[-1])


def _without_wait(save: LoopSave) -> LoopSave:
    """Return a save as it were without the one before."""
    parts = {**save.parts, Part.WAIT: 0.0}
    return replace(save, parts=parts, latency_s=save.latency_s - save.parts[Part.WAIT])


def _first(jobs: Sequence[JobLoop]) -> FirstSave:
    first = [save for job in jobs for save in job.saves if save.opening and save.valid]
    if not first:
        return FirstSave()
    columns = ([save.lost_s for save in first], [save.blocked_s for save in first], [save.latency_s for save in first])
    return FirstSave(len(first), *(float(np.median(column)) for column in columns))


def _above(jobs: Sequence[JobLoop]) -> AboveReference:
    rows = [row for job in jobs if (row := _above_in(job)) is not None]
    if not rows:
        return AboveReference()
    with np.errstate(all="ignore"):
        columns = [[value for value in column if not math.isnan(value)] for column in zip(*rows, strict=True)]
    return AboveReference(*(float(np.median(column)) if column else math.nan for column in columns))


def _above_in(job: JobLoop) -> tuple[float, ...] | None:
    """Return the fields of `AboveReference` of one job; None without blocks of both kinds."""
    off = [block for block in job.blocks if block.is_reference]
    on = [block for block in job.blocks if block.valid and block.every and not block.opening]
    if not on or not off:
        return None
    saved = Counter(save.block for save in job.saves)

    def above(value: Callable[[LoopBlock], float]) -> float:
        return float(np.median([value(block) for block in on]) - np.median([value(block) for block in off]))

    def per_save(value: Callable[[LoopBlock], float]) -> float:
        usual = np.median([value(block) / max(1, len(block.steps)) for block in off])
        more = [(value(block) - usual * len(block.steps)) / saved[block.number] for block in on if saved[block.number]]
        return float(np.median(more)) if more else math.nan

    own_cpu_s = [save.cpu_s for save in job.saves if save.valid and not save.opening]
    return (
        float(np.median([block.peak_memory_bytes for block in off])),
        above(lambda block: block.peak_memory_bytes),
        above(lambda block: block.end_memory_bytes),
        _grown_bytes(block for block in job.blocks if block.valid and not block.opening),
        above(lambda block: block.threads),
        above(lambda block: block.descriptors),
        per_save(lambda block: block.cpu_s + block.helper_cpu_s),
        per_save(lambda block: block.helper_cpu_s),
        float(np.median(own_cpu_s)) if own_cpu_s else math.nan,
    )


def _grown_bytes(blocks: Iterable[LoopBlock]) -> float:
    """Return what the last block of a kind ended with above the first one: the median over the kinds, which differ."""
    by_kind: dict[int, list[float]] = {}
    for block in blocks:
        by_kind.setdefault(block.every, []).append(block.end_memory_bytes)
    grown = [ends[-1] - ends[0] for ends in by_kind.values() if len(ends) > 1]
    return float(np.median(grown)) if grown else math.nan
