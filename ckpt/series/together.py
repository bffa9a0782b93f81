"""Series of states with DTensors: all ranks save and restore together, and write behind their programs.

The program's thread plans with the other ranks, and copies this rank's shards. A thread writes them, and commits with
the other ranks' threads, over a gloo group of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.checkpoint import load
from ckpt.errors import CheckpointError
from ckpt.series import resuming, saving, steps
from ckpt.series.keep import Metrics
from ckpt.series.resuming import Restored
from ckpt.series.saving import Saved, Series
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
        series: the same on all ranks.
        timeout_s: how long a rank waits for the others to come.
        prepare: prepares the directory, on rank 0, when they come for the first time; returns the newest whole step.
        prepared: takes that step, on every rank.
    """

    series: Series
    timeout_s: float
    prepare: Callable[[], int | None]
    prepared: Callable[[int | None], None]
    _have_begun: bool = field(default=False, init=False)

    def plan(self, step: int, state: Any) -> Planned:
        """Agree on a save, and plan it; every rank calls this.

        Raises:
            CheckpointError: on every rank that came.
        """
        from ckpt import agreement, together

        final = steps.path_of(self.series.directory, step)
        ranks, part = agreement.reached("Checkpointer.save", state, final, self.timeout_s, _PURPOSE)
        self._begin(ranks)
        return together.plan(ranks, part)

    def restore(self, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
        """Load the newest checkpoint that every rank can load; every rank calls this.

        Raises:
            CheckpointError: on every rank.
        """
        from ckpt import agreement

        directory = self.series.directory
        ranks, _ = agreement.reached("Checkpointer.restore", into, directory, self.timeout_s, _PURPOSE)
        self._begin(ranks)
        known = {step: (problem, metrics) for step, problem, metrics in ranks.share_first(lambda: _listing(directory))}

        def load_step(step: int) -> tuple[Any, dict[str, float]]:
            problem, metrics = known[step]
            if problem:
                raise CheckpointError(problem)
            state = load(steps.path_of(directory, step), into=into, strict=strict).state
            return state, saving.metrics_in({"metrics": metrics})

        return resuming.newest_of(known, load_step, [directory], start_over=start_over)

    def _begin(self, ranks: Meeting) -> None:
        if not self._have_begun:
            self.prepared(ranks.share_first(self.prepare))
            self._have_begun = True


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


def save(copies: State, *, planned: Planned, series: Series, step: int, metrics: Metrics) -> Saved:
    """Commit a step's checkpoint, as `saving.save` does; every rank calls this.

    Args:
        copies: of what this rank may have to write.
        planned: the save.
        series: where to save, and how.
        step: the checkpoint's.
        metrics: rank 0's are kept in the checkpoint.

    Raises:
        CheckpointError: on every rank, as `saving.save` does.
    """
    from ckpt import together

    planned.planner.data = copies
    ranks = planned.ranks
    ranks.share_first(lambda: _require_room(planned, series.directory))
    together.write(planned, steps.path_of(series.directory, step), saving.notes_of(step, metrics))
    saved: list[Saved] = []  # rank 0's
    ranks.share_first(lambda: saved.append(saving.finish(series, step)))
    return saved[0] if saved else Saved()


def _require_room(planned: Planned, directory: Path) -> None:
    """Refuse what can't fit: the whole tensors, of which every rank has a shard."""
    tensors = planned.part.tensors.values()
    saving.require_room(directory, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
