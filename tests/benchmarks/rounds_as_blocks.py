"""How often are differences called that are none, and how often those that are? On simulated studies.

    python tests/benchmarks/rounds_as_blocks.py [STUDIES [KIND ...]]

A benchmark, not a test: it prints a Markdown table, and asserts nothing. Each line is of so many simulated studies (by
default 500). Rounds differ by 10 %, cells by 5 % beside that, and the three trials of a cell by 2 %, all lognormal.

- `quiet`: nothing else.
- `round`: one round takes 1.5 to 4 times as long, and in it cells differ by 30 %.
- `cells`: one cell in ten takes 2.5 times as long.
- `noisy`: the cells of the second method differ by 20 %.

`before` is the procedure before: a permutation test of the difference of mean log-medians, rounds ignored.
`now` is `analysis.differences`. An error is a difference that is called one where there is none, of one
method against one other; the errors in a table are tables in which any of the methods is called different from the
first, corrected as tables are. Power is the share of differences of 1.5 times that are called so.
"""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.measures.differences import differences
from analysis.measures.trials import Trials

KINDS = ("quiet", "round", "cells", "noisy")
ROUNDS, METHODS, TRIALS = (3, 4, 5, 8), (2, 4, 10), 3
FACTOR = 1.5

Floats = NDArray[np.float64]


def simulated(draw: np.random.Generator, kind: str, studies: int, methods: int, rounds: int) -> Floats:
    """Durations in s, by study, method, round and trial."""
    logs = draw.normal(0, 0.1, (studies, 1, rounds)) + draw.normal(0, 0.05, (studies, methods, rounds))
    if kind == "round":
        slower = draw.uniform(math.log(1.5), math.log(4), (studies, 1))
        logs[:, :, -1] += slower + draw.normal(0, 0.3, (studies, methods))
    if kind == "cells":
        logs += math.log(2.5) * (draw.random(logs.shape) < 0.1)
    if kind == "noisy":
        logs[:, 1] += draw.normal(0, 0.2, (studies, rounds))
    return np.exp(logs[..., np.newaxis] + draw.normal(0, 0.02, (*logs.shape, TRIALS)))


def permuted(durations: Floats) -> float:
    """In what share of the studies whole jobs, permuted over all rounds, separate the second method from the first."""
    levels = np.log(np.median(durations, axis=-1))
    rounds = levels.shape[-1]
    if 2 / math.comb(2 * rounds, rounds) > 0.05:
        return 0.0

    def difference(a: Floats, b: Floats, axis: int = -1) -> Floats:
        return np.asarray(a.mean(axis=axis) - b.mean(axis=axis))

    batch = max(1, 2_000_000 // (levels.shape[0] * 2 * rounds))
    sides = levels[:, 1], levels[:, 0]
    test = stats.permutation_test(sides, difference, vectorized=True, n_resamples=1999, axis=-1, batch=batch, rng=0)
    return float((test.pvalue < 0.05).mean())


def called(durations: Floats) -> tuple[float, float]:
    """In what share of the studies the second method is called different; any is, when all are looked at."""
    one, some = 0, 0
    for study in durations:
        rounds = tuple(str(number) for number in range(study.shape[1]) for _ in range(study.shape[2]))
        first, *others = (Trials(tuple(method.ravel().tolist()), rounds, rounds) for method in study)
        one += differences([(others[0], first)], others)[0].significant
        some += any(difference.significant for difference in differences([(each, first) for each in others]))
    return one / len(durations), some / len(durations)


def main() -> None:
    """Print a line for each kind of disturbance and each size of a study."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print("| | rounds | methods | error, before | error, now | error in a table, now | power, before | power, now |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, rounds, methods in itertools.product(sys.argv[2:] or KINDS, ROUNDS, METHODS):
        alike = simulated(np.random.default_rng(rounds * methods), kind, studies, methods, rounds)
        unlike = alike.copy()
        unlike[:, 1] *= FACTOR
        error, in_a_table = called(alike)
        cells = (permuted(alike), error, in_a_table, permuted(unlike), called(unlike)[0])
        print(f"| {kind} | {rounds} | {methods} |", " | ".join(f"{cell:.3f}" for cell in cells), "|", flush=True)


if __name__ == "__main__":
    main()
