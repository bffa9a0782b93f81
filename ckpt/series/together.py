"""Series of states with DTensors: all ranks save and restore together, and write behind their programs.

The program's thread plans with the other ranks, and copies this rank's shards. A thread writes them, and commits with
the other ranks' threads, over a gloo group of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.checkpoint import load
from ckpt.errors import CheckpointError
from ckpt.series import resuming, saving, steps
from ckpt.series.keep import Metrics
from ckpt.series.levels import Levels
from ckpt.series.resuming import Loaded, Restored
from ckpt.series.saving import Saved
from ckpt.state.layout import State

if TYPE_CHECKING:
    from ckpt.process_group.meeting import Meeting
    from ckpt.together import Planned

_PURPOSE = "series"
"""Its gloo group is not that of `ckpt.save` and `ckpt.load`: a thread may use it while the program calls those."""


@dataclass
class Ranks:
    """The ranks that save and restore a series together.

    Args:
        levels: the same on all ranks; rank 0 prepares them, and copies from one to the next.
        timeout_s: how long a rank waits for the others to come.
        prepared: takes the newest whole step on every rank, when they came for the first time.
    """

    levels: Levels
    timeout_s: float
    prepared: Callable[[int | None], None]
    is_first: bool = field(default=False, init=False)
    """Whether this is rank 0; known once they came."""
    _have_begun: bool = field(default=False, init=False)

    def plan(self, step: int, state: Any) -> Planned:
        """Agree on a save, and plan it; every rank calls this.

        Raises:
            CheckpointError: on every rank that came.
        """
        from ckpt import agreement, together

        final = steps.path_of(self.levels.first.directory, step)
        ranks, part = agreement.reached("Checkpointer.save", state, final, self.timeout_s, _PURPOSE)
        self._begin(ranks)
        return together.plan(ranks, part)

    def restore(self, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
        """Load the newest checkpoint that every rank can load; every rank calls this.

        Raises:
            CheckpointError: on every rank.
        """
        from ckpt import agreement

        directories = self.levels.directories
        ranks, _ = agreement.reached("Checkpointer.restore", into, directories[-1], self.timeout_s, _PURPOSE)
        self._begin(ranks)
        listed = ranks.share_first(lambda: [_listing(directory) for directory in directories])
        known = dict(zip(directories, listed, strict=True))
        problems = {
            steps.path_of(directory, step): (problem, metrics)
            for directory, its in known.items()
            for step, problem, metrics in its
        }

        def load_path(path: Path) -> Loaded:
            problem, metrics = problems[path]
            if problem:
                raise CheckpointError(problem)
            return load(path, into=into, strict=strict).state, saving.metrics_in({"metrics": metrics})

        levels = {directory: [step for step, *_ in its] for directory, its in known.items()}
        restored = resuming.newest(levels, load_path, start_over=start_over)
        if restored and self.is_first:
            self.levels.resume(restored.step)
        return restored

    def ended(self, step: int, saved: Saved | None, problem: str) -> None:
        """Take the end of a save, and let rank 0 copy its checkpoint; called from any thread."""
        self.levels.ended(step, saved, problem, copies=self.is_first)

    def _begin(self, ranks: Meeting) -> None:
        """Let rank 0 prepare the directories, once; every rank must see its local one."""
        if self._have_begun:
            return
        newest, identity = ranks.share_first(lambda: [self.levels.prepare(), self.levels.identity])
        ranks.share(lambda: self.levels.require_identity(identity))
        self.prepared(newest)
        self.is_first, self._have_begun = ranks.rank == 0, True


def _listing(directory: Path) -> list[list[Any]]:
    """The steps of a directory, why they can't be loaded if they can't, and their metrics as a manifest has them."""
    listed: list[list[Any]] = []
    for step in steps.steps_in(directory):
        try:
            metrics = saving.metrics_in(steps.whole(steps.path_of(directory, step)).notes)
        except CheckpointError as error:
            listed.append([step, str(error), {}])
        else:
            listed.append([step, "", saving.notes_of(step, metrics)["metrics"]])
    return listed


def save(copies: State, *, planned: Planned, levels: Levels, step: int, metrics: Metrics) -> Saved:
    """Commit a step's checkpoint, as `saving.save` does; every rank calls this.

    Args:
        copies: of what this rank may have to write.
        planned: the save.
        levels: where to save, and how.
        step: the checkpoint's.
        metrics: rank 0's are kept in the checkpoint.

    Raises:
        CheckpointError: on every rank, as `saving.save` does.
    """
    from ckpt import together

    planned.planner.data = copies
    ranks = planned.ranks
    tensors = planned.part.tensors.values()  # whole ones, of which every rank has a shard
    series, size_bytes = levels.first, sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    ranks.share_first(lambda: levels.require_room(size_bytes))
    together.write(planned, steps.path_of(series.directory, step), saving.notes_of(step, metrics))
    saved: list[Saved] = []  # rank 0's
    ranks.share_first(lambda: saved.append(saving.finish(series, step)))
    return saved[0] if saved else Saved(time.perf_counter())
