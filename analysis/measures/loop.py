"""The model of what checkpoints cost a training loop: job -> blocks -> steps and saves; method -> lost time.

Everything is of all ranks together: a step lasts as long as on the slowest rank, whose blocked time counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from analysis.measures.statistics import UNKNOWN, Interval


class Part(Enum):
    """A part of the lost time, in the order of the tables; they add up to it."""

    WAIT = "wait"
    SNAPSHOT = "snapshot"
    CALL = "call"
    UPDATE_WAIT = "update wait"
    INTERFERENCE = "interference"
    TAIL = "tail"


BLOCKED = (Part.WAIT, Part.SNAPSHOT, Part.CALL, Part.UPDATE_WAIT)
"""The parts that hold the loop; the others slow it down."""


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """The loop that methods share: the log's header attribute `loop`."""

    step: str
    """What a step does: `compute`, `memory`, `launch`, `idle`, or `module:function`."""
    step_s: float
    """How long a step was to take without checkpoints."""
    cores: int | None
    """How many cores a step uses on a rank; None for all."""
    every: tuple[int, ...]
    """Steps from one save to the next."""
    saves: int
    blocks: int
    settle_steps: int

    def __str__(self) -> str:
        """The loop in words."""
        on = "" if self.cores is None else f" on {self.cores} core{'s' if self.cores != 1 else ''}"
        every = " or ".join(map(str, self.every))
        return f"{self.step} steps of {self.step_s:g} s{on}, a save every {every} steps"


@dataclass(frozen=True, slots=True)
class LoopStep:
    """One step on the slowest rank."""

    number: int
    """In its block, from 0; below 0 it only warms up."""
    start_s: float
    """Since the job's `clock_zero_unix_s`."""
    duration_s: float
    blocked_s: float
    """The part of it that checkpoints blocked, on the rank that they blocked longest."""
    slowest_rank: int
    """The rank that the others waited for in the collective."""

    @property
    def end_s(self) -> float:
        """The end, since the job's `clock_zero_unix_s`."""
        return self.start_s + self.duration_s


@dataclass(frozen=True, slots=True)
class LoopBlock:
    """A run of steps with checkpoints on or off."""

    number: int
    every: int
    """Steps from one save to the next; 0 in a reference block."""
    opening: bool
    """Whether it has the job's first save only, which is kept apart."""
    start_s: float
    duration_s: float
    steps: tuple[LoopStep, ...]
    """In order, with those that warm up."""
    valid: bool
    reason: str
    peak_memory_bytes: float
    """Of the process and its helpers, on the rank that took most, as the next three; NaN unknown."""
    end_memory_bytes: float
    threads: float
    descriptors: float
    cpu_s: float
    """Of all ranks together, as the next."""
    helper_cpu_s: float

    @property
    def is_reference(self) -> bool:
        """Whether its steps may serve as the reference."""
        return self.every == 0 and self.valid and not self.opening

    @property
    def measured(self) -> tuple[LoopStep, ...]:
        """The steps without those that warm up."""
        return tuple(step for step in self.steps if step.number >= 0)


@dataclass(frozen=True, slots=True)
class Reference:
    """The steps of one job while nothing was saved; NaN where there are none."""

    median_s: float
    low_s: float
    """95 % of the steps lie between this and the next."""
    high_s: float
    steps: int
    blocks: int


@dataclass(frozen=True, slots=True)
class SlowRank:
    """The rank that the others waited for most in a save's window."""

    rank: int
    host: str
    """Empty where the log doesn't have it."""
    part: Part
    """By what it was slower than the others: a part that blocked it, or `INTERFERENCE` where its steps were longer."""
    excess_s: float
    """How much longer than the median of the other ranks it needed for the window's steps, without their collectives."""


@dataclass(frozen=True, slots=True)
class LoopSave:
    """One save of a loop."""

    job_id: str
    round: str
    block: int
    number: int
    """In its block, from 0."""
    every: int
    opening: bool
    step: int
    """In whose time the call lies: the first step of the window."""
    end_step: int
    """The first step behind the window."""
    commit_step: int
    """The last step that belongs to the interference: the one in which it was committed, or the window's last."""
    called_s: float
    """Since the job's `clock_zero_unix_s`."""
    parts: Mapping[Part, float]
    """In s; they add up to `lost_s`."""
    lost_s: float
    latency_s: float
    """From the call until the last rank had committed; NaN if it never was."""
    waited: bool
    """Whether it had to wait for the save before."""
    state_bytes: float
    """Of all ranks together."""
    slow_rank: SlowRank | None
    """None with one rank."""
    valid: bool
    reason: str

    @property
    def blocked_s(self) -> float:
        """How long the loop was held."""
        return sum(self.parts[part] for part in BLOCKED)


@dataclass(frozen=True, slots=True)
class JobLoop:
    """The training loop of one job."""

    job_id: str
    round: str
    way: str
    spec: LoopSpec
    reference: Reference
    blocks: tuple[LoopBlock, ...]
    saves: tuple[LoopSave, ...]
    """All of them, by time: also invalid ones, and the first."""
    clock_uncertainty_s: float = 0.0
    """How far the clocks of its ranks may differ."""
    recorder_s: float = math.nan
    """What recording a step costs it; NaN where the log doesn't have it."""


@dataclass(frozen=True, slots=True)
class Tested:
    """An amount of time per save, in s, and whether it could be chance."""

    interval: Interval = UNKNOWN
    """The median over the saves, with its 95 % interval: a bootstrap over blocks, those of the reference included."""
    p: float = math.nan
    """Two-sided, by permutation of the blocks (on against off) within jobs; NaN where there is too little to test."""
    verdict: str = ""
    """`more` or `less` than nothing, `not significant`, or `too few blocks to tell`; empty where nothing is known."""


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
    blocks: int
    lost: Tested
    parts: Mapping[Part, Tested]
    """Medians; so that they need not add up to the median of `lost`."""
    blocked: Interval
    """All parts that hold the loop together."""
    latency: Interval

    @property
    def share(self) -> Interval:
        """Lost time over the interval: 0.1 is 10 % longer training."""
        return _scaled(self.lost.interval, self.interval_s)

    @property
    def exposure_s(self) -> float:
        """Interval and commit latency: the most work that a failure can cost."""
        return self.interval_s + self.latency.estimate


@dataclass(frozen=True, slots=True)
class Unhurried:
    """Saves that didn't have to wait for the one before, at any interval: what one save costs by itself."""

    saves: int = 0
    lost: Interval = UNKNOWN
    """In s per save."""
    blocked: Interval = UNKNOWN
    latency: Interval = UNKNOWN
    """In s from the call to the commit."""


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
    """What the job's last block ended with above its first."""
    threads: float = math.nan
    descriptors: float = math.nan
    cpu_s: float = math.nan
    """Of all processes, per save."""
    helper_cpu_s: float = math.nan
    """Of the processes that the loop's started, per save."""


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


def meeting_s(sync: LoopCost, other: LoopCost) -> float:
    """Return the interval in s below which a way loses as much as the synchronous one; NaN if they don't meet.

    There the time that it waits is what the synchronous save takes.
    """
    meeting = other.unhurried.latency.estimate - sync.unhurried.lost.estimate
    loses_less = other.unhurried.lost.estimate < sync.unhurried.lost.estimate
    return meeting if loses_less and meeting > 0 else math.nan


def spec_of(text: str) -> LoopSpec | None:
    """Read the header attribute `loop`; None where it is empty or no loop of this package."""
    try:
        values = json.loads(text)
        cores = values.get("cores")
        return LoopSpec(
            step=str(values["step"]),
            step_s=float(values["step_s"]),
            cores=None if cores is None else int(cores),
            every=tuple(map(int, values["every"])),
            saves=int(values["saves"]),
            blocks=int(values["blocks"]),
            settle_steps=int(values["settle_steps"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return None


def _scaled(interval: Interval, divisor: float) -> Interval:
    ends = (interval.estimate, interval.low, interval.high)
    return Interval(*(end / divisor if divisor > 0 else math.nan for end in ends))


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)
