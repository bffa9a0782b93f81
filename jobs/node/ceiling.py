"""The ceiling: what the target, and the memory, do by themselves, measured in the same job."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ckpt.disk import direct_io, page_cache
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

    First past the page cache, then through it, where that isn't the same: the faster one is the ceiling, and on some
    filesystems it is the second by far. All processes that save do so at the same time, with as many bytes as they
    save. A copy of as many bytes in memory goes with it. No strategy can be faster than these for long. Where the
    target refuses, the log's provenance has the reason, and the trials go on.
    """
    groups = context.groups
    path = scratch / f"ceiling-{groups.process.rank}"
    size_bytes = direct_io.round_up(subject.saved_bytes)
    rows: list[Ceiling] = []
    problem = ""
    resident = math.nan
    for move in _MOVES:
        groups.world.barrier()
        refused = any(not (row.direct or row.buffered) for row in rows)
        if problem or not subject.assignment.saves or (move.buffered and refused):
            continue
        try:
            row = _measure(move, when, path, size_bytes, context)
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


def _measure(move: _Move, when: str, path: Path, size_bytes: int, context: JobContext) -> Ceiling:
    start_s = context.clock()
    direct = _run(move, path, size_bytes) if size_bytes else True  # a rank may have no shard
    end_s = context.clock()
    return Ceiling(
        when=when,
        operation=move.operation,
        size_bytes=size_bytes,
        start_s=start_s,
        duration_s=end_s - start_s,
        direct=direct,
        rank=context.groups.process.rank,
        buffered=move.buffered,
    )


def _run(move: _Move, path: Path, size_bytes: int) -> bool:
    """Move the bytes; returns whether they went past the page cache."""
    if move.operation == "write":
        return direct_io.write_sequentially(path, size_bytes, direct=not move.buffered)
    if move.operation == "read":
        return direct_io.read_sequentially(path, direct=not move.buffered)
    return direct_io.copy_memory(size_bytes)
