"""Finds the checkpoint of a series to resume from: the newest that loads, every byte of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt.checkpoint import load
from ckpt.errors import CheckpointError, CheckpointWarning
from ckpt.series import saving, steps


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint of a series, loaded.

    Attributes:
        step: the number of steps that were finished when it was saved.
        state: as it was saved; if it was loaded into a state that exists, with that state's tensors.
        metrics: that were saved with it.
        skipped: why newer checkpoints could not be loaded, by their steps.
    """

    step: int
    state: Any
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)


def restore(directory: Path, into: Any, *, strict: bool, start_over: bool) -> Restored | None:
    """Load the newest checkpoint that can be loaded; None if nothing was saved, or `start_over` allows that.

    Args:
        directory: of the series.
        into: the state to load into; None to allocate one.
        strict: as `ckpt.load` takes it.
        start_over: see above.

    Raises:
        CheckpointError: if something was saved, and none of it can be loaded.
    """
    skipped: dict[int, str] = {}
    for step in reversed(steps.steps_in(directory)):
        path = steps.path_of(directory, step)
        try:
            metrics = saving.metrics_in(steps.whole(path).notes)
            state = load(path) if into is None else load(path, into=into, strict=strict).state
        except CheckpointError as error:
            skipped[step] = str(error)
            continue
        if skipped:
            warnings.warn(f"resuming from step {step}: {_reasons(skipped)}", CheckpointWarning, stacklevel=4)
        return Restored(step, state, metrics, skipped)
    if skipped and not start_over:
        raise CheckpointError(
            f"none of the checkpoints in {directory} can be loaded, and training would start at nothing: "
            f"{_reasons(skipped)}. To start over all the same, call restore(start_over=True)"
        )
    return None


def _reasons(skipped: dict[int, str]) -> str:
    return "; ".join(skipped.values())
