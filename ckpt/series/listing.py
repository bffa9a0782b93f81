"""What lies in a directory of a series, as the ranks of a job tell one another, and join what their nodes have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt.errors import CheckpointError
from ckpt.series import parts, saving, steps


@dataclass(frozen=True, slots=True)
class Listed:
    """A step's checkpoint.

    Attributes:
        step: the step.
        problem: why it can't be loaded; empty if it may be.
        metrics: that were saved with it, as a manifest has them.
    """

    step: int
    problem: str
    metrics: dict[str, Any]


def of(directory: Path) -> list[list[Any]]:
    """List a directory's checkpoints, as JSON has it: step, problem, metrics, and the part that this one is."""
    listed: list[list[Any]] = []
    for step in steps.steps_in(directory):
        try:
            known = steps.whole(steps.path_of(directory, step))
        except CheckpointError as error:
            listed.append([step, str(error), {}, parts.WHOLE])
        else:
            metrics = saving.notes_of(step, saving.metrics_in(known.notes))["metrics"]
            listed.append([step, "", metrics, known.part or parts.WHOLE])
    return listed


def joined(directory: Path, of_ranks: Sequence[Sequence[Sequence[Any]]]) -> dict[Path, Listed]:
    """Join the lists of a directory that all nodes have, or share; returns its checkpoints by path."""
    by_step: dict[int, list[Sequence[Any]]] = {}
    for listed in of_ranks:
        for entry in listed:
            by_step.setdefault(entry[0], []).append(entry[1:])
    paths = {step: steps.path_of(directory, step) for step in sorted(by_step)}
    return {path: _joined(path, step, by_step[step]) for step, path in paths.items()}


def _joined(path: Path, step: int, entries: Sequence[Sequence[Any]]) -> Listed:
    metrics_of = {number: metrics for problem, metrics, (number, _) in entries if not problem}
    counts = {count for problem, _, (_, count) in entries if not problem}
    if counts and metrics_of.keys() == set(range(max(counts))):
        return Listed(step, "", metrics_of[0])
    problems = [problem for problem, *_ in entries if problem]
    if counts:
        having = ", ".join(str(number + 1) for number in sorted(metrics_of))
        problems.append(f"{path} has part {having} of {max(counts)} on the nodes of this job, and the others nowhere")
    return Listed(step, "; ".join(problems), {})
