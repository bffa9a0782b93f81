"""How files are best written and read in a directory, by what it lies on: past the page cache or through it.

What is known of a filesystem decides, else whether it says that it does direct I/O, else a short trial with a small
file. A process finds that out once per filesystem, and any strategy can be told otherwise.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ckpt.disk import direct_io, mounts, page_cache, sequential

Direct = Literal["auto", True, False]
"""Whether to go past the page cache: as the plan has it, always, or never."""

_TRIAL_BYTES = 16 * 2**20
_TRIAL_S = 2.0
"""When the last of the small files' writes and reads may begin; a slow filesystem needs no second round."""

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
    """

    direct_writes: bool
    direct_reads: bool
    preallocate: bool
    why: str

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
        return f"{writes} writes{', preallocated' if self.preallocate else ''}, {reads} reads ({self.why})"


_UNKNOWN = IoPlan(direct_writes=False, direct_reads=True, preallocate=False, why="nothing is known of this filesystem")

_plans: dict[int, IoPlan] = {}
"""The plans of filesystems, by their device numbers. Two threads may make one each, which does no harm."""


def plan_for(directory: Path, *, may_write: bool = True) -> IoPlan:
    """Return the plan for a directory that exists.

    Args:
        directory: where files are to be written or read.
        may_write: a small file may be written there, if nothing is known of the filesystem; it is removed again.
    """
    with suppress(OSError):
        device = directory.stat().st_dev
        if device not in _plans:
            mount = mounts.mount_of(directory)
            plan = _of_facts(mount)
            if plan is None and not may_write:
                return _UNKNOWN
            _plans[device] = plan or _of_trial(directory, mount.filesystem)
        return _plans[device]
    return _UNKNOWN


def remember(directory: Path, plan: IoPlan) -> None:
    """Take another rank's plan for the filesystem that holds a directory."""
    with suppress(OSError):  # other nodes' new directories may not be seen yet
        _plans[directory.stat().st_dev] = plan


def _of_facts(mount: mounts.Mount) -> IoPlan | None:
    """Return the plan for a filesystem that is known; None for any other."""
    best = mount.facts.best_io
    if best is None:
        return None
    return IoPlan(best.direct_writes, best.direct_reads, best.preallocate, f"known of {mount.filesystem}")


def _of_trial(directory: Path, filesystem: str) -> IoPlan:
    """Ask the filesystem whether it does direct I/O; else write and read a small file both ways."""
    try:
        with _small_file(directory) as path:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                alignment = direct_io.direct_alignment(descriptor)
            finally:
                os.close(descriptor)
            if alignment:
                return IoPlan(
                    direct_writes=True,
                    direct_reads=True,
                    preallocate=True,
                    why=f"{filesystem} says that it does direct I/O",
                )
            return _fastest(path, filesystem)
    except OSError as error:
        return replace(_UNKNOWN, why=f"{filesystem} could not be tried: {error.strerror}")


def _fastest(path: Path, filesystem: str) -> IoPlan:
    """Write and read a small file both ways, twice if that is quick, and choose."""
    seconds: dict[tuple[str, bool], float] = {}
    start_s = time.perf_counter()

    def note(operation: str, direct: bool, work: Callable[[], bool]) -> None:
        begin_s = time.perf_counter()
        went_past = work()
        taken_s = time.perf_counter() - begin_s
        if direct and not went_past:
            taken_s = float("inf")  # the page cache, by another name
        seconds[operation, direct] = min(taken_s, seconds.get((operation, direct), float("inf")))

    for direct in (True, False) * 2:
        if len(seconds) == 4 and time.perf_counter() - start_s > _TRIAL_S:
            break
        path.unlink(missing_ok=True)
        note("write", direct, lambda: sequential.write_sequentially(path, _TRIAL_BYTES, direct=direct, reserve=False))  # noqa: B023  # called at once
        page_cache.evict_file(path)
        note("read", direct, lambda: sequential.read_sequentially(path, direct=direct))  # noqa: B023  # called at once
    writes, reads = (seconds[name, True] <= _CLEARLY * seconds[name, False] for name in ("write", "read"))
    rates = ", ".join(
        f"{'direct' if direct else 'buffered'} {operation} {_TRIAL_BYTES / taken_s / 1e6:.0f} MB/s"
        for (operation, direct), taken_s in sorted(seconds.items(), reverse=True)
    )
    return IoPlan(writes, reads, preallocate=False, why=f"{filesystem} was tried: {rates}")


@contextmanager
def _small_file(directory: Path) -> Iterator[Path]:
    path = directory / f".io-trial-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
