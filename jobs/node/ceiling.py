"""The ceiling: what the target, and the memory, do by themselves, measured in the same job."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ckpt.disk import direct_io, io_plan, page_cache, sequential
from ckpt.state import dtypes
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
    by far. All processes that save do so at the same time, with as many bytes as they
    save, which compress as the state does. A copy of as many bytes in memory goes with it. No strategy can be faster
    than these for long. Where the target fails, the log's provenance has the reason, and the trials go on.
    """
    groups = context.groups
    path = scratch / f"ceiling-{groups.process.rank}"
    file = _File(
        path, direct_io.round_up(subject.saved_bytes), io_plan.plan_for(scratch).preallocate, _excerpt(subject)
    )
    rows: list[Ceiling] = []
    problem = ""
    resident = math.nan
    for move in _MOVES:
        groups.world.barrier()
        if problem or not subject.assignment.saves:
            continue
        try:
            row = _measure(move, when, file, context)
            if move.operation == "read":
                row = replace(row, resident_fraction=resident)
                path.unlink(missing_ok=True)
            elif path.exists():
                page_cache.evict_file(path)
                resident = page_cache.resident_fraction_of(path)
            rows.append(row)
        except OSError as error:
            problem = f"unknown ({type(error).__name__}: {error})"
    path.unlink(missing_ok=True)
    sent = groups.world.gather((problem, [asdict(row) for row in rows]))
    for reason, ceilings in groups.world.read(sent, received.pair(received.text, received.rows(Ceiling))):
        recorder.ceiling(ceilings)
        if reason:
            recorder.provenance(**{f"ceiling_{when}": reason})


@dataclass(frozen=True, slots=True)
class _File:
    """The file that is written and read."""

    path: Path
    size_bytes: int
    reserve: bool
    content: bytes


def _excerpt(subject: Subject) -> bytes:
    """Return a block of bytes in which all tensors of the state have their share; empty if there are none."""
    share = sequential.BLOCK_BYTES / max(1, sum(tensor.nbytes for tensor in subject.state.values()))
    parts = [
        dtypes.to_bytes(tensor.reshape(-1)[: math.ceil(tensor.numel() * share)]) for tensor in subject.state.values()
    ]
    content = b"".join(part.tobytes() for part in parts)
    return (content * math.ceil(sequential.BLOCK_BYTES / len(content)) if content else b"")[: sequential.BLOCK_BYTES]


def _measure(move: _Move, when: str, file: _File, context: JobContext) -> Ceiling:
    start_s = context.clock()
    direct = _run(move, file) if file.size_bytes else True  # a rank may have no shard
    end_s = context.clock()
    return Ceiling(
        when=when,
        operation=move.operation,
        size_bytes=file.size_bytes,
        start_s=start_s,
        duration_s=end_s - start_s,
        direct=direct,
        rank=context.groups.process.rank,
        buffered=move.buffered,
    )


def _run(move: _Move, file: _File) -> bool:
    """Move the bytes; returns whether they went past the page cache."""
    direct = not move.buffered
    if move.operation == "write":
        return sequential.write_sequentially(
            file.path, file.size_bytes, direct=direct, reserve=file.reserve and direct, content=file.content
        )
    if move.operation == "read":
        return sequential.read_sequentially(file.path, direct=direct)
    return sequential.copy_memory(file.size_bytes)
