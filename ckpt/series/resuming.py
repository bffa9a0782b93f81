"""Finds the checkpoint of a series to resume from: the newest that loads, every byte of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
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


def restore(directories: Sequence[Path], into: Any, *, strict: bool, start_over: bool) -> Restored | None:
    """Load the newest checkpoint that can be loaded; None if nothing was saved, or `start_over` allows that.

    Args:
        directories: of the series' levels, the nearest first.
        into: the state to load into; None to allocate one.
        strict: as `ckpt.load` takes it.
        start_over: see above.

    Raises:
        CheckpointError: if something was saved, and none of it can be loaded.
    """
    steps_of = {directory: set(steps.steps_in(directory)) for directory in directories}

    def first_level(step: int) -> tuple[Any, dict[str, float]]:
        paths = [steps.path_of(directory, step) for directory in directories if step in steps_of[directory]]
        return _first_of(paths, into, strict=strict)

    return newest_of(set().union(*steps_of.values()), first_level, directories, start_over=start_over)


def newest_of(
    known: Iterable[int],
    load_step: Callable[[int], tuple[Any, dict[str, float]]],
    directories: Sequence[Path],
    *,
    start_over: bool,
) -> Restored | None:
    """Load the newest step for which that raises no error; a warning has the reasons for which newer ones were skipped.

    Args:
        known: the steps.
        load_step: returns a step's state and its metrics.
        directories: for messages.
        start_over: return None, instead of an error, if there are steps and none of them can be loaded.

    Raises:
        CheckpointError: see above.
    """
    skipped: dict[int, str] = {}
    for step in sorted(known, reverse=True):
        try:
            state, metrics = load_step(step)
        except CheckpointError as error:
            skipped[step] = str(error)
            continue
        if skipped:
            warnings.warn(f"resuming from step {step}: {_reasons(skipped)}", CheckpointWarning, stacklevel=5)
        return Restored(step, state, metrics, skipped)
    if skipped and not start_over:
        raise CheckpointError(
            f"none of the checkpoints in {' or '.join(map(str, directories))} can be loaded, and training would start "
            f"at nothing: {_reasons(skipped)}. To start over all the same, call restore(start_over=True)"
        )
    return None


def _first_of(paths: Sequence[Path], into: Any, *, strict: bool) -> tuple[Any, dict[str, float]]:
    """Load a checkpoint from the first level that has it undamaged; returns its state and its metrics.

    Raises:
        CheckpointError: if no level has; with the reasons.
    """
    problems = []
    for path in paths:
        try:
            metrics = saving.metrics_in(steps.whole(path).notes)
            state = load(path) if into is None else load(path, into=into, strict=strict).state
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"loaded {path}: {'; '.join(problems)}", CheckpointWarning, stacklevel=6)
        return state, metrics
    raise CheckpointError("; ".join(problems))


def _reasons(skipped: dict[int, str]) -> str:
    return "; ".join(skipped.values())
