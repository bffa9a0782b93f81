"""The model of one job's training loop: blocks of steps with checkpoints off and on, and saves with what they lost.

Everything is of all ranks together: a step lasts as long as on the slowest rank, whose blocked time counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


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
    part: Part | None
    """By what it was slower than the others: a part that blocked it, or `INTERFERENCE` where its steps were longer;
    None where its steps were not, but its files were on storage later."""
    excess_s: float
    """How much longer than the others' median it took: for the steps, collectives and its usual time left out, or
    until its files were on storage."""

    @property
    def by(self) -> str:
        """By what it was slower, in words."""
        return self.part.value if self.part else "writing"


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
    committed: bool
    """Whether the window has its commit: the next save was called later."""
    tail_cut: bool
    """Whether steps after the commit were not back in the reference's band at the next call, or at the block's end."""
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
    cpu_s: float
    """CPU time of the threads or processes that saved, of all ranks together; NaN unknown."""
    slow_rank: SlowRank | None
    """None with one rank, or where no rank is slower than the others."""
    valid: bool
    reason: str
    drained_s: float = math.nan
    """From the call until the second level had it; NaN if it never had, or there is none."""
    drain_problem: str = ""
    """Why the second level lacks it; empty if it doesn't, or there is none."""

    @property
    def blocked_s(self) -> float:
        """How long the loop was held."""
        return sum(self.parts[part] for part in BLOCKED)

    @property
    def pending_steps(self) -> int:
        """The steps of the window up to the commit."""
        return self.commit_step + 1 - self.step

    @property
    def tail_steps(self) -> int:
        """The steps of the window after the commit."""
        return self.end_step - self.commit_step - 1


@dataclass(frozen=True, slots=True)
class JobLoop:
    """The training loop of one job, as one process a rank ran it: a job that was interrupted and went on has several.

    Each of them calibrated its steps by itself, perhaps on another node, and has a reference of its own.
    """

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

    @property
    def name(self) -> str:
        """The job's id, and with which block it went on, if it did."""
        first = self.blocks[0].number if self.blocks else 0
        return f"{self.job_id}, from block {first}" if first else self.job_id


def spec_of(text: str) -> LoopSpec | None:
    """Read the header attribute `loop`; None where it is empty or no loop of this package."""
    try:
        values = json.loads(text)
        cores = values.get("cores")
        spec = LoopSpec(
            step=str(values["step"]),
            step_s=float(values["step_s"]),
            cores=None if cores is None else int(cores),
            every=tuple(map(int, values["every"])),
            saves=int(values["saves"]),
            blocks=int(values["blocks"]),
            settle_steps=int(values["settle_steps"]),
        )
        counts = (*spec.every, spec.saves, spec.blocks)
        return spec if spec.every and min(counts) >= 1 and 0 < spec.step_s < math.inf else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return None
