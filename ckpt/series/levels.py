"""The directories of a series: the shared one, and a node-local one in front of it if there are two levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt.errors import CheckpointError, wrapped
from ckpt.series import local as local_level
from ckpt.series import removing, resuming, saving, steps
from ckpt.series.draining import Drain
from ckpt.series.local import Local
from ckpt.series.resuming import Restored
from ckpt.series.saving import Series


class Levels:
    """Where a series' checkpoints are committed, where they are copied to, and from where they are loaded.

    Args:
        shared: the series that lasts.
        local: the level in front of it; None if there is none.

    Attributes:
        first: where saves are committed.
        directories: of all levels, the nearest first.

    Raises:
        CheckpointError: if a directory can't be used.
    """

    def __init__(self, shared: Series, local: Local | Path | str | None) -> None:
        self.first, self.directories = shared, [shared.directory]
        self._shared = shared
        self._drain: Drain | None = None
        if local is not None:
            level = local if isinstance(local, Local) else Local(local)
            if level.path == shared.directory:
                raise CheckpointError(f"{shared.directory} can't be both levels: give `local` a directory of its own")
            self.first = replace(shared, directory=level.path, keep=None)  # the drain removes there
            self.directories.insert(0, level.path)
            self._drain = Drain(level, shared)
        for directory in self.directories:
            steps.refuse_a_foreign_latest(directory)

    def prepare(self) -> int | None:
        """Remove what ended programs left, and mend `latest`; returns the newest whole step.

        Raises:
            CheckpointError: if the local directory is another series'.
        """
        if self._drain:
            with wrapped(f"can't use {self.first.directory}"):
                local_level.claim(self.first.directory, self._shared.directory)
        newest = []
        for directory in self.directories:
            removing.sweep(directory)
            if whole := steps.all_whole(directory):
                newest.append(max(whole))
                steps.point_latest(directory, newest[-1])
        return max(newest, default=None)

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint on any level, the oldest first."""
        return sorted({step for directory in self.directories for step in steps.all_whole(directory)})

    def restore(self, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
        """Load the newest checkpoint, as `resuming.restore` does; copy it, if an ended program didn't."""
        restored = resuming.restore(self.directories, into, strict=strict, start_over=start_over)
        if self._drain and restored:
            self._drain.resume(restored.step)
        return restored

    def require_room(self, size_bytes: int) -> None:
        """Refuse a save that can't fit, even when the local level has nothing that the shared one has too.

        Raises:
            CheckpointError: if it can't.
        """
        try:
            saving.require_room(self.first.directory, size_bytes)
        except CheckpointError:
            if self._drain is None:
                raise
            self._drain.make_room()
            saving.require_room(self.first.directory, size_bytes)

    def refuse_dtensors(self) -> None:
        """Refuse a state of which every rank has a shard.

        Raises:
            CheckpointError: if there are two levels.
        """
        if self._drain:
            raise CheckpointError(
                f"DTensors can't be saved on two levels: {self.first.directory} would have a part of them on every "
                "node. Leave `local` out"
            )

    def committed(self, step: int) -> None:
        """Copy a new checkpoint to the shared level in its turn; called from any thread."""
        if self._drain:
            self._drain.committed(step)

    def problem(self) -> str:
        """What went wrong since the last call, while checkpoints were copied; empty if nothing did."""
        return self._drain.problem() if self._drain else ""

    def finish(self) -> None:
        """Wait until the shared level has the newest checkpoint.

        Raises:
            CheckpointError: if it can't be copied.
        """
        if self._drain:
            self._drain.finish()
