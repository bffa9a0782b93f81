"""Steps for the self-test, of another length in every job: only a job's own blocks can serve as its reference."""

from __future__ import annotations

import itertools
import os
import random
import time
from functools import partial

from jobs.node.loop.steps import Work

_CALIBRATION_S = 0.2


def sleep(step_s: float, cores: int) -> Work:  # noqa: ARG001  # of every step
    """Sleep in every step for one to two times the stated length, as long in all steps of a job."""
    return partial(time.sleep, _uneven(step_s))


def compute(step_s: float, cores: int) -> Work:  # noqa: ARG001  # of every step
    """Compute on one core for one to two times the stated length, in CPU time.

    The thread stays on that core, and what saves behind the loop inherits this: what it computes there, the loop loses.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    piece = partial(sum, range(20_000))
    start_s, count = time.thread_time(), 0
    while time.thread_time() - start_s < _CALIBRATION_S:
        piece()
        count += 1
    times = max(1, round(count * _uneven(step_s) / _CALIBRATION_S))

    def work() -> None:
        for _ in itertools.repeat(None, times):
            piece()

    return work


def _uneven(step_s: float) -> float:
    return step_s * random.SystemRandom().uniform(1, 2)
