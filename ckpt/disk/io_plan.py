"""How files are best written and read in a directory, by what it lies on: past the page cache or through it.

What is known of a filesystem decides, else whether it says that it does direct I/O, else a short trial with a small
file. A process makes one plan per filesystem; the other ranks of a job, and a process that saves behind a program, take
it over. Any strategy's option overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ckpt.disk import io_trial, leftovers, mounts

Direct = Literal["auto", True, False]
"""Whether to go past the page cache: as the plan has it, always, or never."""

_CLEARLY = 1.3
"""Direct I/O takes less CPU and leaves the page cache alone: what goes through it must be so many times as fast."""


@dataclass(frozen=True, slots=True)
class IoPlan:
    """How to write and read files in a directory; the same for every rank.

    Attributes:
        direct_writes: past the page cache. What goes through it is flushed beside the writes.
        direct_reads: past the page cache, where the files aren't in it.
        preallocate: reserve a file's blocks before it is written.
        why: what decided.
        several_files: write files of `filesystems.FILE_MIB` rather than a single one.
    """

    direct_writes: bool
    direct_reads: bool
    preallocate: bool
    why: str
    several_files: bool = False

    def forced(self, direct: Direct) -> IoPlan:
        """Return the plan with what a strategy's option demands."""
        if direct == "auto":
            return self
        why = f"direct = {str(direct).lower()} is asked for"
        return replace(
            self, direct_writes=direct, direct_reads=direct, preallocate=self.preallocate and direct, why=why
        )

    def __str__(self) -> str:
        """The plan in words, as a timing log has it."""
        writes, reads = ("direct" if direct else "buffered" for direct in (self.direct_writes, self.direct_reads))
        details = f"{', preallocated' if self.preallocate else ''}{', in several files' if self.several_files else ''}"
        return f"{writes} writes{details}, {reads} reads ({self.why})"


_UNKNOWN = IoPlan(direct_writes=False, direct_reads=True, preallocate=False, why="nothing is known of this filesystem")

_plans: dict[int | Path, IoPlan] = {}
"""The plans that were made here, by the filesystems' device numbers, and those of others, by directory.

Two threads may make one each, which does no harm.
"""


def plan_for(directory: Path, *, may_write: bool = True) -> IoPlan:
    """Return the plan for a directory that exists.

    Args:
        directory: where files are to be written or read.
        may_write: a small file may be written there, if nothing is known of the filesystem; it is removed again. Of a
            directory in which a checkpoint is being written, it lies beside it.
    """
    path = directory.absolute()
    for above in (path, *path.parents):
        if above in _plans:
            return _plans[above]
    with suppress(OSError):
        device = path.stat().st_dev
        if device not in _plans:
            mount = mounts.mount_of(path)
            plan = _of_facts(mount)
            if plan is None and not may_write:
                return _UNKNOWN
            staging = path.name.startswith(leftovers.PREFIX)
            _plans[device] = plan or _of_trial(path.parent if staging else path, mount.filesystem)
        return _plans[device]
    return _UNKNOWN


def remember(directory: Path, plan: IoPlan) -> None:
    """Take another rank's plan for a directory and what is below; this node need not see it yet."""
    _plans[directory.absolute()] = plan


def known() -> dict[int | Path, IoPlan]:
    """Return all plans of this process, for another one of this node to `adopt`."""
    return dict(_plans)


def adopt(plans: Mapping[int | Path, IoPlan]) -> None:
    """Take the plans that another process of this node knows, instead of making them again."""
    _plans.update(plans)


def _of_facts(mount: mounts.Mount) -> IoPlan | None:
    """Return the plan for a filesystem that is known; None for any other."""
    best = mount.facts.best_io
    if best is None:
        return None
    why = f"known of {mount.filesystem}"
    return IoPlan(best.direct_writes, best.direct_reads, best.preallocate, why, best.several_files)


def _of_trial(directory: Path, filesystem: str) -> IoPlan:
    """Take direct I/O where the filesystem says that it does it; else the faster way of a trial."""
    outcome = io_trial.try_out(directory)
    if outcome.problem:
        return replace(_UNKNOWN, why=f"{filesystem} could not be tried: {outcome.problem}")
    if outcome.says_direct:
        why = f"{filesystem} says that it does direct I/O"
        return IoPlan(direct_writes=True, direct_reads=True, preallocate=True, why=why)
    operations: tuple[io_trial.Operation, ...] = ("write", "read")
    writes, reads = (
        outcome.rates[operation, False] <= _CLEARLY * outcome.rates[operation, True] for operation in operations
    )
    rates = ", ".join(
        f"{'direct' if direct else 'buffered'} {operation} {rate / 1e6:.0f} MB/s"
        for (operation, direct), rate in sorted(outcome.rates.items(), reverse=True)
    )
    why = f"{filesystem} was tried with {outcome.size_bytes // 2**20} MiB: {rates}"
    return IoPlan(writes, reads, preallocate=False, why=why)
