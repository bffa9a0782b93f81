"""How fast the target makes, finds, reads and removes small files and directories, as mdtest measures it.

On one rank first, then on all at the same time, each in a directory of its own. Files have 3901 bytes, as in mdtest's
hard part. With several ranks, each finds and reads the files of another one, on the next node where there are several:
what a rank made itself is in the cache of its own client.

A few hundred files, and half a second for each operation, tell filesystems apart whose rates differ by factors of a
hundred. So it can be done in every job: before anything else is measured, and all is removed and synced by then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ckpt.disk import durable
from jobs.node import received
from jobs.node.context import JobContext
from jobs.node.recorder import Recorder
from jobs.timing_log import Metadata

FILE_BYTES = 3901
_CONTENT = os.urandom(FILE_BYTES)

_MOST = 200
"""Files, and directories, of a rank."""

_LONGEST_S = 0.5
"""Of one operation; whatever is under way then still ends."""


def measure_metadata(scratch: Path, context: JobContext, recorder: Recorder) -> None:
    """Measure small files on the target, and remove them; every process of the job calls it.

    Where the target refuses, the log's provenance has the reason, and the trials go on.
    """
    groups = context.groups
    for ranks in dict.fromkeys((1, groups.world.size)):
        mine = _SmallFiles(scratch, context, ranks)
        mine.measure()
        sent = groups.world.gather((mine.problem, [asdict(row) for row in mine.rows]))
        for reason, rows in groups.world.read(sent, received.pair(received.text, received.rows(Metadata))):
            recorder.metadata(rows)
            if reason:
                recorder.provenance(metadata=reason)
    if groups.is_leader:
        durable.fsync_path(scratch)  # so that no trial waits for what is left in the filesystem's journal
    groups.world.barrier()


class _SmallFiles:
    """One process's small files, and what it measured with them while as many ranks as said did the same."""

    def __init__(self, scratch: Path, context: JobContext, ranks: int) -> None:
        self.rows: list[Metadata] = []
        self.problem = ""
        self._scratch, self._context, self._ranks = scratch, context, ranks
        self._rank = context.groups.world.rank
        self._own = self._directory(self._rank)

    def measure(self) -> None:
        """Do one operation after the other, each at the same time as the other ranks, and remove what is left."""
        own = str(self._own)
        try:
            self._do("", lambda _: self._own.mkdir(), 1, self._rank)
            directories = self._do("mkdir", lambda number: os.mkdir(f"{own}/d{number}"), _MOST, self._rank)  # noqa: PTH102  # a Path of each would be measured too
            files = self._do("create", lambda number: _create(f"{own}/f{number}"), _MOST, self._rank)
            other, count = self._other(files)
            theirs = str(self._directory(other))
            self._do("stat", lambda number: os.stat(f"{theirs}/f{number}"), count, other)  # noqa: PTH116
            self._do("read", lambda number: _read(f"{theirs}/f{number}"), count, other)
            self._do("unlink", lambda number: os.unlink(f"{own}/f{number}"), files, self._rank)  # noqa: PTH108
            self._do("rmdir", lambda number: os.rmdir(f"{own}/d{number}"), directories, self._rank)  # noqa: PTH106
        finally:
            shutil.rmtree(self._own, ignore_errors=True)

    def _directory(self, rank: int) -> Path:
        return self._scratch / f"metadata-{self._ranks}-{rank}"

    def _other(self, files: int) -> tuple[int, int]:
        """The rank whose files this one looks at, and how many there are."""
        group, scale = self._context.groups.checkpoint, self._context.groups.scale
        sent = group.all_gather((self._rank, files if self._rank < self._ranks else 0))
        counts = group.read(sent, received.pair(received.count, received.count))
        step = scale.processes_per_node if group.size > scale.processes_per_node else 1
        return counts[(group.rank + step) % group.size] if self._ranks > 1 else counts[group.rank]

    def _do(self, operation: str, work: Callable[[int], object], most: int, made_by: int) -> int:
        """Do something to one file after the other, until it takes too long; returns to how many."""
        self._context.groups.world.barrier()
        if self.problem or self._rank >= self._ranks or not most:
            return 0
        clock, done = self._context.clock, 0
        start_s = end_s = clock()
        try:
            while done < most and end_s - start_s < _LONGEST_S:
                work(done)
                done += 1
                end_s = clock()
        except OSError as error:
            self.problem = f"unknown ({operation or 'mkdir'}: {type(error).__name__}: {error})"
            return done
        if operation:
            self.rows.append(
                Metadata(
                    when="before",
                    operation=operation,
                    count=done,
                    size_bytes=0 if operation.endswith("dir") else FILE_BYTES,
                    start_s=start_s,
                    duration_s=end_s - start_s,
                    rank=self._rank,
                    made_by=made_by,
                    ranks=self._ranks,
                )
            )
        return done


def _create(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    try:
        os.write(descriptor, _CONTENT)
    finally:
        os.close(descriptor)  # some filesystems send the file only now


def _read(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(descriptor, FILE_BYTES)
    finally:
        os.close(descriptor)
