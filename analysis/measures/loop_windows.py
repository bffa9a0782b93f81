"""Decides which steps a save slowed down, and splits what they lost into parts.

    ... │ call ─ ─ ─ ─ ─ ─ ─ ─ │ commit ─ ─ ─ ─ │ steps as without checkpoints ... │ next call
          window: up to the commit   then the tail

A step is its excess over the median step without checkpoints. What the call blocked, and waits for it, is apart; the
other excess is interference up to the step in which the save was committed, and tail behind it. The window ends before
the next call, or earlier: from where, after the commit, steps are in the band that holds 95 % of those without
checkpoints. A median of many steps times one save's excess would count noise: such steps are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.measures.loop import BLOCKED, LoopBlock, LoopStep, Part, Reference

_BAND = (2.5, 97.5)

_STEPS_BACK = 3
"""So many consecutive steps in the band end a window: one of them may be there by chance."""

NO_REFERENCE = Reference(math.nan, math.nan, math.nan, 0, 0)

NOTHING_BLOCKED: Mapping[Part, float] = dict.fromkeys(BLOCKED, 0.0)


@dataclass(frozen=True, slots=True)
class Window:
    """The steps that a save counts, by their number in the block."""

    first: int
    commit: int
    """The last that counts as interference."""
    end: int
    """The first behind the window."""


def reference_of(blocks: Sequence[LoopBlock]) -> Reference:
    """Return the median and the band of all steps without checkpoints, the job's blocks of them together."""
    chosen = [block for block in blocks if block.is_reference and block.measured]
    durations = [step.duration_s for block in chosen for step in block.measured]
    if not durations:
        return NO_REFERENCE
    low, high = np.percentile(durations, _BAND)
    return Reference(float(np.median(durations)), float(low), float(high), len(durations), len(chosen))


def window(steps: Sequence[LoopStep], first: int, bound: int, committed_s: float, reference: Reference) -> Window:
    """Return the window of a save.

    Args:
        steps: of its block, from number 0.
        first: number of the step in whose time the call lies.
        bound: number of the step of the next call, or the number of steps.
        committed_s: the commit on the clock of the steps; NaN, or later than all steps before the bound: the save was
            pending over all of them.
        reference: of the job.
    """
    bound = min(bound, len(steps))
    inside = range(first, bound)
    commit = next((number - 1 for number in inside[1:] if steps[number].start_s > committed_s), bound - 1)
    return Window(first, commit, tail_end(steps, commit, bound, reference))


def tail_end(steps: Sequence[LoopStep], commit: int, bound: int, reference: Reference) -> int:
    """Return the number of the first step behind the commit from which steps are as without checkpoints."""
    back = 0
    for number in range(commit + 1, bound):
        back = back + 1 if reference.low_s <= steps[number].duration_s <= reference.high_s else 0
        if back == _STEPS_BACK:
            return number + 1 - back
    return bound - back


def parts_of(
    steps: Sequence[LoopStep], counted: Window, blocked: Mapping[Part, float], reference: Reference
) -> dict[Part, float]:
    """Split what the steps of a window lost, in s: the parts add up to their excess over the reference's median."""
    pending = steps[counted.first : counted.commit + 1]
    after = steps[counted.commit + 1 : counted.end]
    interference = _excess(pending, reference) - sum(blocked.values())
    return {**blocked, Part.INTERFERENCE: interference, Part.TAIL: _excess(after, reference)}


def _excess(steps: Sequence[LoopStep], reference: Reference) -> float:
    return math.fsum(step.duration_s - reference.median_s for step in steps) if steps else 0.0
