"""One save of a series, wherever it runs: commit, then `latest`, then the removal of what needn't stay."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt import writing
from ckpt.disk import room
from ckpt.errors import CheckpointError
from ckpt.reading import Content, created
from ckpt.series import removing, steps
from ckpt.series.keep import Keep, Metrics
from ckpt.state.layout import State


@dataclass(frozen=True, slots=True)
class Series:
    """Where a series lies, how its checkpoints are written, and which of them stay; None if all do."""

    directory: Path
    keep: Keep | None
    strategy: str
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Import what a save needs.

        Raises:
            CheckpointError: if there is no such strategy, an option is wrong, or a library is missing.
        """
        created(self.strategy, self.options)


@dataclass(frozen=True, slots=True)
class Blocked:
    """How long a call of `save` held the program.

    Attributes:
        wait_s: for the save before.
        copy_s: while the state was copied.
        save_s: while the state was written, where nothing is saved behind the program.
    """

    wait_s: float = 0.0
    copy_s: float = 0.0
    save_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did: the steps that it removed, and why it couldn't remove another; empty if nothing failed."""

    committed_s: float
    """When the checkpoint was committed, by `time.perf_counter`, which a node's processes share."""
    removed: tuple[int, ...] = ()
    problem: str = ""
    is_due: bool = True
    """Whether it may be copied to the next level now; where every node copies a part, they agree on that."""
    cpu_s: float = math.nan
    """The CPU time of the process that saved; NaN if a thread of the program did."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a save, or the copy of a checkpoint to the next level, has ended.

    Attributes:
        step: the checkpoint's.
        directory: the level's.
        committed_s: when the checkpoint was committed there, by `time.perf_counter`, which a node's processes share;
            NaN if it wasn't.
        problem: why it wasn't; empty if it was.
        cpu_s: the CPU time of the process that saved, in seconds; NaN if a thread of the program saved or copied.
    """

    step: int
    directory: Path
    committed_s: float = math.nan
    problem: str = ""
    cpu_s: float = math.nan


def require_room(directory: Path, size_bytes: int) -> None:
    """Refuse a checkpoint that can't fit.

    Raises:
        CheckpointError: if less is free than it takes.
    """
    try:
        free_bytes = room.free_bytes_of(directory)
    except OSError:  # the save itself gives the reason
        return
    if free_bytes is not None and free_bytes < size_bytes:
        raise CheckpointError(
            f"can't save to {directory}: the checkpoint takes {room.size(size_bytes)}, and {room.size(free_bytes)} are "
            "free there. Older checkpoints are removed only after a newer one is committed: keep fewer, or remove what "
            "isn't needed"
        )


def save(tensors: State, *, series: Series, step: int, metrics: Metrics, tied: dict[str, str], rest: Any) -> Saved:
    """Commit a step's checkpoint, let `latest` lead to it, and then remove the checkpoints that needn't stay.

    Args:
        tensors: without those that are tied to others.
        series: where to save, and how.
        step: the checkpoint's.
        metrics: kept in the checkpoint.
        tied: the names that are tied to another tensor, and that tensor's name.
        rest: the state without its tensors, as `ckpt.tree.nested.flatten` returns it.

    Raises:
        CheckpointError: if the checkpoint isn't committed, or `latest` doesn't lead to it; nothing is removed then.
    """
    final = steps.path_of(series.directory, step)
    writing.write(
        Content(tensors, tied, rest), final, created(series.strategy, series.options), notes_of(step, metrics)
    )
    return finish(series, step)


def finish(series: Series, step: int) -> Saved:
    """Let `latest` lead to a checkpoint that was committed just now, and then remove the checkpoints that needn't stay.

    Raises:
        CheckpointError: if `latest` doesn't lead to it; nothing is removed then.
    """
    committed_s, final = time.perf_counter(), steps.path_of(series.directory, step)
    try:
        steps.point_latest(series.directory, step)
    except OSError as error:
        raise CheckpointError(
            f"{final} is committed, but {steps.LATEST} doesn't lead to it ({error}); a restart takes it all the same, "
            "and no older checkpoint was removed"
        ) from error
    return _clean(series, committed_s)


def _clean(series: Series, committed_s: float) -> Saved:
    """Remove what needn't stay. Only whole checkpoints count, and only they are removed."""
    removed: list[int] = []
    if series.keep is None:
        return Saved(committed_s)
    try:
        metrics_of = {step: metrics_in(known.notes) for step, known in steps.all_whole(series.directory).items()}
        for step in series.keep.surplus(metrics_of):
            removing.remove(steps.path_of(series.directory, step))
            removed.append(step)
    except OSError as error:
        return Saved(committed_s, tuple(removed), f"an older checkpoint could not be removed: {error}")
    return Saved(committed_s, tuple(removed))


def notes_of(step: int, metrics: Metrics) -> dict[str, Any]:
    """A step and its metrics as a manifest keeps them: JSON has no NaN and no infinity."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    return {"step": step, "metrics": values}


def metrics_in(notes: Any) -> dict[str, float]:
    """The metrics in a checkpoint's notes, whatever somebody may have written there."""
    metrics = notes.get("metrics") if isinstance(notes, dict) else None
    known = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        with suppress(TypeError, ValueError):
            known[str(name)] = float(value)
    return known
