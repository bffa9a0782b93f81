"""Trials in rounds: with the durations that a test says, and simulated ones that do not differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.measures.trials import Trials


def timed(rounds: Sequence[Sequence[float]], names: Sequence[str] = ()) -> Trials:
    """One job in each of these rounds, with these durations."""
    names = names or [str(number) for number in range(len(rounds))]
    pairs = [(duration, name) for name, durations in zip(names, rounds, strict=True) for duration in durations]
    durations, jobs = zip(*pairs, strict=True)
    return Trials(durations, jobs, jobs)


def simulated(seed: int, rounds: int, sds: Sequence[float], disturbed: str = "") -> list[Trials]:
    """Methods that take as long, in rounds that differ by 10 %; a method's cells differ by its standard deviation."""
    draw = np.random.default_rng(seed)
    logs = draw.normal(0, 0.1, rounds) + draw.normal(0, 1, (len(sds), rounds)) * np.array(sds)[:, np.newaxis]
    if disturbed == "round":
        logs[:, -1] += draw.uniform(math.log(1.5), math.log(4)) + draw.normal(0, 0.3, len(sds))
    if disturbed == "cells":
        logs += math.log(2.5) * (draw.random(logs.shape) < 0.1)
    seconds = np.exp(logs[..., np.newaxis] + draw.normal(0, 0.02, (*logs.shape, 3)))
    return [timed(method.tolist()) for method in seconds]
