"""A study's table `[loop]`: the training loop beside which jobs save, and the ways to save in it."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from ckpt.strategy import Strategy
from ckpt.workload.spec import Count
from jobs.plan.slurm_table import Axis
from jobs.plan.table import Table

KINDS = ("compute", "memory", "launch", "idle")
"""What a step can do to a node; anything else is the user's own, `module:function`."""

NONE, SYNC, THREAD, PROCESS, LIBRARY = "none", "sync", "thread", "process", "library"
CHECKPOINTER = "checkpointer"
WAYS = (NONE, SYNC, THREAD, PROCESS, LIBRARY, CHECKPOINTER)
"""The ways to save in a loop: not at all (a null test), holding the loop, in a thread, in a process, by the strategy's
library, by `ckpt.Checkpointer`."""


_Value = TypeVar("_Value")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _different(values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{list(values)} must be one value or several different ones")
    return values


def _known_steps(steps: tuple[str, ...]) -> tuple[str, ...]:
    for step in steps:
        if step not in KINDS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", step):
            raise ValueError(f"{step!r} is no step: expected {', '.join(KINDS)}, or your own as `module:function`")
    return _different(steps)


def _known_ways(ways: tuple[str, ...]) -> tuple[str, ...]:
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"{way!r} is no way to save: expected {', '.join(WAYS)}")
    return _different(ways)


class Loop(Table):
    """The training loop of every job, in blocks of steps with checkpoints on or off, in random order.

    Attributes:
        step: what a step does to its node: `compute` (matrix products), `memory` (copies), `launch` (a Python thread
            that issues many small calls), `idle` (sleeps), or your own `module:function`. A list is an axis of the
            study.
        step_s: how long a step takes without checkpoints.
        cores: that a `compute` or `memory` step uses on a rank; None for all that the rank is bound to, or its share of
            the node's.
        ways: how to save, an axis beside the strategy: `sync` holds the loop; `thread` and `process` copy the state,
            and save behind the loop; `library` stands for the strategy's own asynchronous saves; `checkpointer` is this
            package's `Checkpointer`, for jobs of one rank; `none` saves nothing (a null test), and runs with the first
            strategy only.
        every: steps from one save to the next; a list has blocks of all of them.
        saves: in a block.
        blocks: of the reference, and as many of every number in `every`.
        settle_steps: after a block's last commit, until the steps are expected to be as before.
    """

    step: Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_known_steps)] = ("compute",)
    step_s: float = Field(default=1.0, gt=0, le=600)
    cores: Count | None = Field(default=None, ge=1)
    ways: Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_known_ways)] = (SYNC, THREAD, PROCESS)
    every: Annotated[Axis, AfterValidator(_different)] = (10,)
    saves: Count = Field(default=3, ge=1)
    blocks: Count = Field(default=5, ge=1)
    settle_steps: Count = Field(default=3, ge=0)

    def checkpoints_of(self, way: str) -> int:
        """How many checkpoints a job writes that saves in that way, the first one included."""
        return 0 if way == NONE else 1 + self.blocks * len(self.every) * self.saves

    def blocks_of(self, way: str) -> int:
        """How many blocks a job has that saves in that way, that of the first save included."""
        return (way != NONE) + self.blocks * (1 + len(self.every))

    @property
    def duration_s(self) -> float:
        """How long a job's steps take without checkpoints, in s; those that only warm up not counted."""
        return self.step_s * self.steps

    @property
    def steps(self) -> int:
        """How many steps a job has on a rank, but for those that warm up, or wait for a block's last save."""
        return self.blocks * self.saves * (max(self.every) + sum(self.every))

    def ways_of(self, strategy: Strategy) -> list[str]:
        """The ways in which a strategy saves; `library` stands for those that its library has."""
        own = strategy.async_ways
        return [way for asked in self.ways for way in (own if asked == LIBRARY else (asked,))]

    def why_not(self, strategy: Strategy) -> str:
        """Why a way is left out for a strategy; empty if none is."""
        if LIBRARY in self.ways and not strategy.async_ways:
            return "its library has no asynchronous save of its own"
        return ""

    def setting(self, step: str) -> dict[str, Any]:
        """What methods must share to be compared."""
        return {"step": step} | self.model_dump(mode="json", exclude={"step", "ways"})
