"""Which checkpoints of a series stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckpt.errors import CheckpointError

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints stay when a new one has been committed; a checkpoint stays for any of these reasons.

    Attributes:
        last: it is one of the newest, of so many; at least 1.
        every: its step is a multiple of this number; 0 for none.
        lowest: it has the lowest value of this metric so far, the loss for example; empty for none.
        highest: it has the highest value of this metric so far; empty for none.

    Raises:
        CheckpointError: if a number is too small.
    """

    last: int = 3
    every: int = 0
    lowest: str = ""
    highest: str = ""

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 0:
            raise CheckpointError(
                f"Keep(last={self.last}, every={self.every}) isn't possible: `last` is at least 1, so that there is "
                "always a checkpoint to resume from, and `every` at least 0"
            )

    def surplus(self, metrics_of: Mapping[int, Metrics]) -> list[int]:
        """Return the steps that needn't stay, the oldest first.

        Args:
            metrics_of: the metrics of every whole checkpoint, by its step.
        """
        steps = sorted(metrics_of)
        kept = set(steps[-self.last :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        for name, sign in ((self.lowest, 1.0), (self.highest, -1.0)):
            if name:
                kept |= _best(steps, {step: sign * metrics.get(name, math.nan) for step, metrics in metrics_of.items()})
        return [step for step in steps if step not in kept]


def _best(steps: Iterable[int], values: Mapping[int, float]) -> set[int]:
    """Return the step with the lowest value, the newest of several; nothing if there is no value but NaN."""
    known = [step for step in steps if not math.isnan(values[step])]
    return {min(known, key=lambda step: (values[step], -step))} if known else set()
