"""The directories of a series: the shared one, and a node-local one in front of it if there are two levels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ckpt.errors import CheckpointError, wrapped
from ckpt.series import local as local_level
from ckpt.series import removing, resuming, saving, steps
from ckpt.series.draining import Drain
from ckpt.series.local import Local
from ckpt.series.resuming import Restored
from ckpt.series.saving import Outcome, Saved, Series

_log = logging.getLogger("ckpt")


class Levels:
    """Where a series' checkpoints are committed, where they are copied to, and from where they are loaded.

    Args:
        shared: the series that lasts.
        local: the level in front of it; None if there is none.
        ended: called with the outcome of every save and of every copy, from any thread.

    Attributes:
        first: where saves are committed.
        directories: of all levels, the nearest first.

    Raises:
        CheckpointError: if a directory can't be used.
    """

    def __init__(
        self, shared: Series, local: Local | Path | str | None, ended: Callable[[Outcome], Any] | None = None
    ) -> None:
        self.first, self.directories = shared, [shared.directory]
        self._shared, self._observer = shared, ended
        self._drain: Drain | None = None
        if local is not None:
            level = local if isinstance(local, Local) else Local(local)
            if level.path == shared.directory:
                raise CheckpointError(f"{shared.directory} can't be both levels: give `local` a directory of its own")
            self.first = replace(shared, directory=level.path, keep=None)  # the drain removes there
            self.directories.insert(0, level.path)
            self._drain = Drain(level, shared, self._tell)
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

    @property
    def identity(self) -> list[int]:
        """What identifies the local directory, once it is prepared; empty if there is one level."""
        return local_level.identity(self.first.directory) if self._drain else []

    def require_identity(self, expected: list[int]) -> None:
        """Refuse to work with ranks whose local directory is another one.

        Raises:
            CheckpointError: if this process doesn't see the directory of that identity.
        """
        if self.identity != expected:
            raise CheckpointError(
                f"{self.first.directory} is another directory than rank 0's, and DTensors are saved on two levels by "
                "ranks that see the same one, on one node. Leave `local` out"
            )

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint on any level, the oldest first."""
        return sorted({step for directory in self.directories for step in steps.all_whole(directory)})

    def restore(self, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
        """Load the newest checkpoint, as `resuming.newest` does; copy it, if an ended program didn't."""
        levels = {directory: steps.steps_in(directory) for directory in self.directories}
        load_path = partial(resuming.load_one, into=into, strict=strict)
        restored = resuming.newest(levels, load_path, start_over=start_over)
        if restored:
            self.resume(restored.step)
        return restored

    def resume(self, step: int) -> None:
        """Copy the checkpoint that was restored to the shared level, if an ended program didn't."""
        if self._drain:
            self._drain.resume(step)

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

    @property
    def is_copying(self) -> bool:
        """Whether a checkpoint is being copied, or waits for its turn."""
        return self._drain is not None and self._drain.is_copying

    def ended(self, step: int, saved: Saved | None, problem: str, *, copies: bool = True) -> None:
        """Take the end of a save, and copy its checkpoint to the shared level in its turn; called from any thread."""
        if self._drain and saved and copies:
            self._drain.committed(step)
        self._tell(Outcome(step, self.first.directory, saved.committed_s if saved else math.nan, problem))

    def abandon(self) -> None:
        """Copy nothing more."""
        if self._drain:
            self._drain.abandon()

    def _tell(self, outcome: Outcome) -> None:
        if self._observer:
            try:
                self._observer(outcome)
            except Exception:  # noqa: BLE001  # whatever a program's function raises
                _log.exception("the function that takes the outcomes of saves failed")

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
