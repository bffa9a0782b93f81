"""The rows that a training loop adds to a timing log: its blocks, every step of every rank, and its saves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from jobs.timing_log.column import column


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of training steps with checkpoints on or off, on one rank."""

    block: int = column("1", "number of the block in its job, from 0")
    rank: int = column("1", "rank that ran it, from 0")
    every: int = column("1", "steps from one save to the next; 0 where checkpoints are off, which is the reference")
    opening: bool = column("1", "whether it has the job's first save, which starts processes and plans; kept apart")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration, until the last save was committed and the steps had settled")
    peak_memory_bytes: int = column(
        "byte", "most memory of the process and its helpers, shared memory once; -1 unknown"
    )
    end_memory_bytes: int = column("byte", "the same at the end of the block; -1 unknown")
    threads: int = column("1", "most threads of the process and its helpers; -1 unknown")
    descriptors: int = column("1", "most open descriptors of the process and its helpers; -1 unknown")
    cpu_s: float = column("s", "CPU time of the process, user and system")
    helper_cpu_s: float = column("s", "CPU time of the processes that it started")
    valid: bool = column("1", "whether its steps may be used")
    reason: str = column("1", "why they may not; empty where they may")
    run: int = column(
        "1", "first block of the process that ran it: one that goes on with an interrupted job has steps of its own", 0
    )


def blocks_of_runs(blocks: Iterable[Block]) -> list[int]:
    """How many valid blocks each run of a job has, in their order; those of a first save don't count."""
    runs: dict[int, set[int]] = {}
    for row in blocks:
        own = runs.setdefault(row.run, set())
        if row.valid and not row.opening:
            own.add(row.block)
    return [len(runs[run]) for run in sorted(runs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the training loop on one rank, from the end of the optimizer's update to the end of the next."""

    block: int = column("1", "number of the block in its job, from 0")
    step: int = column("1", "number of the step in its block, from 0; below 0 it only warms up")
    rank: int = column("1", "rank that ran it, from 0")
    start_s: float = column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = column("s", "duration, with whatever checkpoints blocked, and the wait for the other ranks")
    blocked_s: float = column("s", "part of it in which this rank's checkpoint call, or a wait for one, held the step")
    collective_s: float = column("s", "part of it spent in the collective: the wait for the slowest rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSave:
    """One save of the training loop on one rank."""

    block: int = column("1", "number of the block in its job, from 0")
    save: int = column("1", "number of the save in its block, from 0")
    rank: int = column("1", "rank that saved, from 0")
    step: int = column("1", "number of the step, in its block, in whose time the call lies")
    start_s: float = column("s", "the call, since the job's clock_zero_unix_s")
    wait_s: float = column("s", "blocked until the save before had ended")
    snapshot_s: float = column("s", "blocked while the state was copied")
    call_s: float = column("s", "blocked in the rest of the call")
    update_wait_s: float = column("s", "blocked before the optimizer, whose update had to wait for a copy")
    commit_s: float = column("s", "from the call until the checkpoint was committed; NaN if it never was")
    state_bytes: int = column("byte", "logical size of this rank's share of the state")
    durability: str = column("1", "what is safe then: committed (proven) or committed-unproven")
    dirty_pages: int = column("1", "pages of the checkpoint not yet on storage at the commit; -1 unknown")
    cpu_s: float = column(
        "s",
        "CPU time of the process that saved; NaN, unknown, if a thread or library did, or if threads drain",
        math.nan,
    )
    synced_s: float = column(
        "s", "from the call until this rank's files were on storage, before the commit of all; NaN if they never were",
        math.nan,
    )  # fmt: skip
    drained_s: float = column(
        "s", "from the call until the second level had the checkpoint; NaN if it never had, or there is none", math.nan
    )
    drain_problem: str = column("1", "why the second level lacks it; empty if it doesn't, or there is none", "")
    valid: bool = column("1", "whether the checkpoint is the state at the call, bit for bit, and durable at its commit")
    reason: str = column("1", "why not; empty where it is")
