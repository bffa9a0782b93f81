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
from ckpt.series import parts, removing, resuming, saving, steps
from ckpt.series.draining import Drain
from ckpt.series.local import Local
from ckpt.series.parts import Others
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
        self._local: Local | None = None
        self._drain: Drain | None = None
        if local is not None:
            self._local = level = local if isinstance(local, Local) else Local(local)
            if level.path == shared.directory:
                raise CheckpointError(f"{shared.directory} can't be both levels: give `local` a directory of its own")
            self.first = replace(shared, directory=level.path, keep=None)  # the drain removes there
            self.directories.insert(0, level.path)
            self._drain = Drain(level, shared, self._tell)
        for directory in self.directories:
            steps.refuse_a_foreign_latest(directory)

    def claim(self) -> list[int]:
        """Make the local directory this series'; returns what identifies it: nothing if there is one level.

        Raises:
            CheckpointError: if it is another series'.
        """
        if not self._drain:
            return []
        with wrapped(f"can't use {self.first.directory}"):
            local_level.claim(self.first.directory, self._shared.directory)
            return local_level.identity(self.first.directory)

    def prepare(self) -> int | None:
        """Remove what ended programs left, and mend `latest`; returns the newest whole step.

        Raises:
            CheckpointError: if the local directory is another series'.
        """
        self.claim()
        newest = [_prepared(directory) for directory in self.directories]
        return max((step for step in newest if step is not None), default=None)

    def prepare_local(self) -> None:
        """Do so in the local directory alone."""
        _prepared(self.first.directory)

    def divide(self, *, is_first: bool, patience_s: float) -> None:
        """Let every node have a local directory of its own, with a part of every checkpoint; only leaders copy.

        Args:
            is_first: whether this is rank 0, which puts the parts together.
            patience_s: how long it waits while nothing comes from the other nodes.
        """
        assert self._local is not None
        others = Others(patience_s) if is_first else None
        tell = self._tell if is_first else _ignore
        self._drain = Drain(self._local, self._shared, tell, others, has_parts=True)

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint on any level, the oldest first."""
        known = [known for directory in self.directories for known in steps.all_whole(directory).items()]
        newest = self._drain.newest if self._drain else None
        return sorted({step for step, its in known if not its.part or (newest is not None and step <= newest)})

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
    def drain(self) -> Drain:
        """What copies to the shared level."""
        assert self._drain is not None
        return self._drain

    @property
    def copying(self) -> int | None:
        """The step that is being copied to the shared level."""
        return self._drain.copying if self._drain else None

    def ended(self, step: int, saved: Saved | None, problem: str, *, copies: bool = True) -> None:
        """Take the end of a save, and copy its checkpoint to the shared level in its turn; called from any thread."""
        if self._drain and saved and copies:
            self._drain.committed(step, is_due=saved.is_due)
        committed_s, cpu_s = (saved.committed_s, saved.cpu_s) if saved else (math.nan, math.nan)
        self._tell(Outcome(step, self.first.directory, committed_s, problem, cpu_s))

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


def _prepared(directory: Path) -> int | None:
    """Remove what ended programs left in a directory, and mend its `latest`; returns its newest whole step."""
    removing.sweep(directory)
    parts.sweep(directory)
    whole = [step for step, known in steps.all_whole(directory).items() if not known.part]
    if not whole:
        return None
    steps.point_latest(directory, whole[-1])
    return whole[-1]


def _ignore(_: Outcome) -> None:
    """Take the outcome of copying a part, which is none for the program."""
