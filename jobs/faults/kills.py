"""Processes that end at any moment of their save: the scheduler kills them, or memory runs out."""

from __future__ import annotations

import random
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

from jobs.faults.budget import Budget
from jobs.faults.outcomes import Outcome
from jobs.faults.replacing import Replacing
from jobs.faults.subject import Subject

_WAYS = {
    (signal.SIGKILL,): 3,
    (signal.SIGTERM,): 1,
    (signal.SIGSTOP, signal.SIGKILL): 1,  # the kernel finishes what it is about, and nothing follows for a while
}
"""The signals that a process gets, and how often beside the others."""

_UNDISTURBED = 3
_LATEST_SHARE = 1.2
"""Of a save's usual duration: some saves take longer, and some processes are killed after them."""


def outcomes(subject: Subject, work: Path, budget: Budget) -> Iterator[Outcome]:
    """Replace the old state by the new one, in processes that are killed at random moments.

    Args:
        subject: what saves.
        work: an empty directory on the target.
        budget: how many processes, and the seed of their moments.

    Raises:
        StudyError: if it can't be tried.
    """
    chance = random.Random(budget.seed)  # noqa: S311  # drawn moments, no secrets
    with Replacing(subject, work) as replacing:
        usual_s = statistics.median(replacing.replace().duration_s for _ in range(_UNDISTURBED))
        for _ in range(budget.kills):
            share = chance.uniform(0, _LATEST_SHARE)
            signals = chance.choices(list(_WAYS), list(_WAYS.values()))[0]
            ending = replacing.replace(signals=signals, after_s=share * usual_s)
            names = " and ".join(number.name for number in signals)
            fault = f"{names} after {share:.0%} of a save's usual time, the save {ending.what}"
            yield from replacing.outcomes(ending, fault, round(share * 100))
