"""The ceiling: what the target, and the memory, do by themselves, measured in the same job."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ckpt.disk import direct_io, io_plan, mounts, page_cache, sequential
from ckpt.disk.filesystems import Kind
from ckpt.state import dtypes
from ckpt.threads import over
from jobs.node import received
from jobs.node.context import JobContext
from jobs.node.recorder import Recorder
from jobs.node.subject import Subject
from jobs.timing_log import Ceiling


@dataclass(frozen=True, slots=True)
class _Move:
    """One measurement of a ceiling: what is moved, and whether through the page cache."""

    operation: str
    buffered: bool


_MOVES = (
    _Move("write", buffered=False),
    _Move("read", buffered=False),
    _Move("write", buffered=True),
    _Move("read", buffered=True),
    _Move("copy", buffered=False),
)
"""The measurements, in this order."""


def measure_ceiling(when: str, subject: Subject, scratch: Path, context: JobContext, recorder: Recorder) -> None:
    """Write and read as many bytes as the state has, on the same target, as fast as the storage takes them.

    First past the page cache, then through it: the faster one is the ceiling, and on some filesystems it is the second
    by far. In several files where these may lie on different servers. All processes that save do so at the same time,
    with as many bytes as they save, which compress as the state does. A copy of as many bytes in memory goes with it.
    No strategy can be faster than these for long. Where the target fails, the log's provenance has the reason, and the
    trials go on.
    """
    groups = context.groups
    files = _Files(
        scratch / f"ceiling-{groups.process.rank}",
        subject.saved_bytes,
        count=_count_for(scratch),
        reserve=io_plan.plan_for(scratch).preallocate,
        content=_excerpt(subject),
    )
    rows: list[Ceiling] = []
    problem = ""
    resident = math.nan
    for move in _MOVES:
        groups.world.barrier()
        if problem or not subject.assignment.saves:
            continue
        try:
            if move.operation == "write":
                files.directory.mkdir()
            row = _measure(move, when, files, context)
            if move.operation == "read":
                row = replace(row, resident_fraction=resident)
                shutil.rmtree(files.directory)
            elif move.operation == "write":
                page_cache.evict(files.directory)
                resident = page_cache.resident_fraction(files.directory)
            rows.append(row)
        except OSError as error:
            problem = f"unknown ({type(error).__name__}: {error})"
    shutil.rmtree(files.directory, ignore_errors=True)
    sent = groups.world.gather((problem, [asdict(row) for row in rows]))
    for reason, ceilings in groups.world.read(sent, received.pair(received.text, received.rows(Ceiling))):
        recorder.ceiling(ceilings)
        if reason:
            recorder.provenance(**{f"ceiling_{when}": reason})


def _count_for(directory: Path) -> int:
    """How many files a rank writes: one on a disk of this machine, where several would cost a hard disk its order."""
    kind = mounts.mount_of(directory).facts.kind
    return 1 if kind in {Kind.LOCAL, Kind.MEMORY} else sequential.THREADS


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that a rank writes and reads at the same time.

    Attributes:
        directory: where they lie, and nothing else.
        least_bytes: their size together, at least.
        count: how many there are.
        reserve: whether their blocks are preallocated.
        content: a block of it, with which all of it is made.
    """

    directory: Path
    least_bytes: int
    count: int
    reserve: bool
    content: bytes

    @property
    def file_bytes(self) -> int:
        """The size of one file."""
        return direct_io.round_up(-(-self.least_bytes // self.count))

    @property
    def size_bytes(self) -> int:
        """The size of all of them."""
        return self.file_bytes * self.count

    def write(self, number: int, *, direct: bool) -> bool:
        """Write a file; returns whether that went past the page cache."""
        return sequential.write_sequentially(
            self._path(number),
            self.file_bytes,
            direct=direct,
            reserve=self.reserve and direct,
            content=self.content,
            first=number * self.file_bytes,
            threads=sequential.THREADS // self.count,
        )

    def read(self, number: int, *, direct: bool) -> bool:
        """Read a file; returns whether that went past the page cache."""
        return sequential.read_sequentially(self._path(number), direct=direct, threads=sequential.THREADS // self.count)

    def _path(self, number: int) -> Path:
        return self.directory / str(number)


def _excerpt(subject: Subject) -> bytes:
    """Return a block of bytes in which all tensors of the state have their share; empty if there are none."""
    share = sequential.BLOCK_BYTES / max(1, sum(tensor.nbytes for tensor in subject.state.values()))
    parts = [
        dtypes.to_bytes(tensor.reshape(-1)[: math.ceil(tensor.numel() * share)]) for tensor in subject.state.values()
    ]
    content = b"".join(part.tobytes() for part in parts)
    return (content * math.ceil(sequential.BLOCK_BYTES / len(content)) if content else b"")[: sequential.BLOCK_BYTES]


def _measure(move: _Move, when: str, files: _Files, context: JobContext) -> Ceiling:
    start_s = context.clock()
    direct = _run(move, files) if files.size_bytes else True  # a rank may have no shard
    end_s = context.clock()
    return Ceiling(
        when=when,
        operation=move.operation,
        size_bytes=files.size_bytes,
        start_s=start_s,
        duration_s=end_s - start_s,
        direct=direct,
        rank=context.groups.process.rank,
        buffered=move.buffered,
        files=1 if move.operation == "copy" else files.count,
    )


def _run(move: _Move, files: _Files) -> bool:
    """Move the bytes; returns whether they went past the page cache."""
    if move.operation == "copy":
        return sequential.copy_memory(files.size_bytes)
    act = partial(files.write if move.operation == "write" else files.read, direct=not move.buffered)
    return all(over(range(files.count), act, files.count))
