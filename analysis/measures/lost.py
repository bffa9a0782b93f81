"""The model of lost time: what a method's saves cost the training loops of its jobs, at any interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from analysis.measures.drains import Drains
from analysis.measures.loop import JobLoop, LoopSave, LoopSpec, Part
from analysis.measures.statistics import UNKNOWN, Interval, difference_of

SIGNIFICANT, NOT_SIGNIFICANT, TOO_FEW_BLOCKS = "significant", "not significant", "too few blocks to tell"


@dataclass(frozen=True, slots=True)
class Tested:
    """An amount of time per save, in s, and whether it could be chance."""

    interval: Interval = UNKNOWN
    """The median over the saves, with its 95 % interval: a bootstrap over blocks, those of the reference included."""
    p: float = math.nan
    """Two-sided, by permutation of the blocks (on against off) within jobs, corrected for all methods of the setting;
    NaN where there is too little to test."""
    verdict: str = ""
    """`significant`, `not significant`, `too few blocks to tell`; empty where it is unknown, or nothing."""
    least_p: float = math.nan
    """The least p, uncorrected, that as many blocks could have given."""


@dataclass(frozen=True, slots=True)
class BlockMeans:
    """The mean lost time per save, in s, of every block with checkpoints."""

    lost_s: tuple[float, ...] = ()
    jobs: tuple[str, ...] = ()
    rounds: tuple[str, ...] = ()
    interval: Interval = UNKNOWN
    """Of the lost time of all saves together; with the error of the reference, which all blocks of a job share."""


@dataclass(frozen=True, slots=True)
class AtInterval:
    """What saves at one interval cost."""

    every: int
    """Steps from one save to the next."""
    interval_s: float
    """The same in time: steps, times the reference's median step."""
    saves: int
    """How many are valid."""
    invalid: int
    waited: int
    """How many of the valid ones waited for the save before."""
    cut: int
    """How many of the valid ones had a tail that was not over when the next save was called, or the block ended."""
    blocks: int
    lost: Tested
    parts: Mapping[Part, Tested]
    """Medians; so that they need not add up to the median of `lost`."""
    blocked: Interval
    """All parts that hold the loop together."""
    latency: Interval
    means: BlockMeans = BlockMeans()
    drains: Drains = field(default_factory=Drains)
    """Copies to the second level; empty without one."""

    @property
    def share(self) -> Interval:
        """Lost time over the interval: 0.1 is 10 % longer training."""
        return _scaled(self.lost.interval, self.interval_s)

    @property
    def exposure_s(self) -> float:
        """From one call to the next, and the commit latency: the most work that a failure can destroy."""
        return self.interval_s + self.lost.interval.estimate + self.latency.estimate  # both have the waits


@dataclass(frozen=True, slots=True)
class Unhurried:
    """What one save costs by itself, at any interval.

    Of the saves that `unhurried_saves` chooses, without what they waited for the save before.
    """

    saves: int = 0
    lost: Interval = UNKNOWN
    """In s per save."""
    blocked: Interval = UNKNOWN
    latency: Interval = UNKNOWN
    """In s from the call, when nothing was left to wait for, to the commit."""


@dataclass(frozen=True, slots=True)
class FirstSave:
    """The first saves of the jobs, which start processes and plans; medians in s."""

    saves: int = 0
    lost_s: float = math.nan
    blocked_s: float = math.nan
    latency_s: float = math.nan


@dataclass(frozen=True, slots=True)
class AboveReference:
    """What blocks with checkpoints took above the reference blocks of the same job: medians; NaN unknown."""

    reference_bytes: float = math.nan
    """Peak memory in the reference blocks, with the buffers that a way keeps from its start."""
    peak_bytes: float = math.nan
    lasting_bytes: float = math.nan
    """At the end of a block, above the end of the reference blocks."""
    grown_bytes: float = math.nan
    """What the last block of a kind (one interval, or without checkpoints) ended with above the first of that kind."""
    threads: float = math.nan
    descriptors: float = math.nan
    cpu_s: float = math.nan
    """Of all processes, per save."""
    helper_cpu_s: float = math.nan
    """Of the processes that the loop's started, per save."""
    own_cpu_s: float = math.nan
    """Of the processes that saved, by their own clocks, per save; NaN where a thread or a library saved, or drains."""


@dataclass(frozen=True, slots=True)
class LoopCost:
    """What one method costs the training loop: `Method.loop`."""

    way: str
    """How it saves: `none`, `sync`, `thread`, `process`, `library`, ..."""
    spec: LoopSpec
    step_s: float
    """The median of the jobs' reference medians."""
    jobs: tuple[JobLoop, ...]
    at: tuple[AtInterval, ...]
    """By interval, the shortest first; also where all saves are invalid."""
    unhurried: Unhurried = Unhurried()
    first: FirstSave = FirstSave()
    above: AboveReference = AboveReference()
    invalid: Mapping[str, int] = field(default_factory=dict)
    """How many saves may not be used, the first ones included, by reason."""

    @property
    def shortest_s(self) -> float:
        """The shortest interval that it sustains with one save in flight, in s: its commit latency; NaN unknown."""
        return self.unhurried.latency.estimate

    def lost_at(self, interval_s: float) -> Interval:
        """Return the lost time per save at any interval, in s: that of saves that don't wait, or else the waiting.

        With one save in flight, a cycle lasts at least as long as a commit: a save waits for what is missing.
        """
        latency, lost = self.unhurried.latency, self.unhurried.lost
        pairs = ((lost.estimate, latency.estimate), (lost.low, latency.low), (lost.high, latency.high))
        return Interval(*(_larger(alone, whole - interval_s) for alone, whole in pairs))

    def share_at(self, interval_s: float) -> Interval:
        """Return the lost share at any interval: `lost_at` over the interval, which is in s."""
        return _scaled(self.lost_at(interval_s), interval_s)


def unhurried_saves(jobs: Sequence[JobLoop]) -> list[list[LoopSave]]:
    """Choose, by job, the saves that show what one costs by itself: valid, but not the first, and not cut by a call.

    At an interval at which some save was not committed before the next call, the others are the fast ones. There only
    the last save of each block is chosen: no call follows it, however long it takes.
    """
    usable = [[save for save in job.saves if save.valid and not save.opening] for job in jobs]
    late = {save.every for saves in usable for save in saves if not save.committed}
    last = [{save.block: save.number for save in job.saves} for job in jobs]  # in order of time
    return [
        [save for save in saves if save.committed and (save.every not in late or save.number == last_of[save.block])]
        for saves, last_of in zip(usable, last, strict=True)
    ]


def meeting_s(sync: LoopCost, other: LoopCost) -> Interval:
    """Return the time between saves, in s, below which a way loses as much as the synchronous one.

    There the time that it waits is what the synchronous save takes. With its 95 % interval; unknown if they don't meet.
    """
    meeting = difference_of(other.unhurried.latency, sync.unhurried.lost)
    loses_less = other.unhurried.lost.estimate < sync.unhurried.lost.estimate
    return meeting if loses_less and meeting.estimate > 0 else UNKNOWN


def _scaled(interval: Interval, divisor: float) -> Interval:
    ends = (interval.estimate, interval.low, interval.high)
    return Interval(*(end / divisor if divisor > 0 else math.nan for end in ends))


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)
