"""Finds the checkpoint of a series to resume from: the newest that loads, every byte of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
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


Loaded = tuple[Any, dict[str, float]]
"""A checkpoint's state, and its metrics."""


def load_one(path: Path, into: Any, *, strict: bool) -> Loaded:
    """Load a checkpoint of a series.

    Args:
        path: the checkpoint.
        into: the state to load into; None to allocate one.
        strict: as `ckpt.load` takes it.

    Raises:
        CheckpointError: as `ckpt.load` does.
    """
    metrics = saving.metrics_in(steps.whole(path).notes)
    return load(path) if into is None else load(path, into=into, strict=strict).state, metrics


def newest(
    levels: Mapping[Path, Collection[int]], load_path: Callable[[Path], Loaded], *, start_over: bool
) -> Restored | None:
    """Load the newest checkpoint that can be loaded; None if there is none, or `start_over` allows that.

    A warning has the reasons for which newer ones were skipped.

    Args:
        levels: the steps in the directories of a series, the nearest directory first.
        load_path: loads a checkpoint, or raises a CheckpointError.
        start_over: return None, instead of an error, if there are checkpoints and none of them can be loaded.

    Raises:
        CheckpointError: see above.
    """
    skipped: dict[int, str] = {}
    for step in sorted(set().union(*levels.values()), reverse=True):
        try:
            paths = [steps.path_of(directory, step) for directory, known in levels.items() if step in known]
            state, metrics = _first_of(paths, load_path)
        except CheckpointError as error:
            skipped[step] = str(error)
            continue
        if skipped:
            warnings.warn(f"resuming from step {step}: {_reasons(skipped)}", CheckpointWarning, stacklevel=4)
        return Restored(step, state, metrics, skipped)
    if skipped and not start_over:
        raise CheckpointError(
            f"none of the checkpoints in {' or '.join(map(str, levels))} can be loaded, and training would start "
            f"at nothing: {_reasons(skipped)}. To start over all the same, call restore(start_over=True)"
        )
    return None


def _first_of(paths: Sequence[Path], load_path: Callable[[Path], Loaded]) -> Loaded:
    """Load a checkpoint from the first level that has it undamaged.

    Raises:
        CheckpointError: if no level has; with the reasons.
    """
    problems = []
    for path in paths:
        try:
            loaded = load_path(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"loaded {path}: {'; '.join(problems)}", CheckpointWarning, stacklevel=5)
        return loaded
    raise CheckpointError("; ".join(problems))


def _reasons(skipped: dict[int, str]) -> str:
    return "; ".join(skipped.values())
