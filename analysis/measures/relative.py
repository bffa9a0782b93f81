"""How methods differ from one of them: ratios with intervals, and verdicts that many comparisons don't spoil."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.measures.differences import Difference, differences
from analysis.measures.method import Method, Statistic
from analysis.measures.statistics import geometric_mean

OPERATIONS = {
    "save": "save",
    "load_cold": "load, cold",
    "load_unproven": "load, not proven cold",
    "load_warm": "load, warm",
}
"""The fields of a method that are timed, and what tables call them."""


@dataclass(frozen=True, slots=True)
class Relative:
    """How one method differs from another; each ratio is its own over the other's."""

    save: Difference
    load_cold: Difference
    load_unproven: Difference
    load_warm: Difference
    size: float
    """The ratio of sizes, which are counted and not timed; NaN where one is unknown."""

    def difference(self, operation: str) -> Difference:
        """Of one of `OPERATIONS`."""
        found: Difference = getattr(self, operation)
        return found


def timed(method: Method, operation: str) -> Statistic:
    """The statistic of one of `OPERATIONS`."""
    found: Statistic = getattr(method, operation)
    return found


def relate(methods: Sequence[Method], reference: str) -> dict[str, Relative]:
    """How each other method differs from the reference, by label; empty where there is none of that label.

    The ps are corrected for all methods together, in each operation by itself.
    """
    base = next((method for method in methods if method.label == reference), None)
    if base is None:
        return {}
    others = [method for method in methods if method is not base]
    found = related([(method, base) for method in others], methods)
    return {method.label: relative for method, relative in zip(others, found, strict=True)}


def related(
    pairs: Sequence[tuple[Method, Method]], among: Sequence[Method] = (), *, shared_rounds: bool = True
) -> list[Relative]:
    """How the first of each pair differs from the second; the ps are corrected for all pairs of an operation.

    Args:
        pairs: of methods.
        among: all methods of the rounds in which these were measured.
        shared_rounds: False where the sides of a pair come from two studies.
    """
    by_operation = {
        name: differences(
            [(timed(one, name).timed, timed(other, name).timed) for one, other in pairs],
            [timed(method, name).timed for method in among],
            shared_rounds=shared_rounds,
        )
        for name in OPERATIONS
    }
    return [
        Relative(
            **{name: by_operation[name][number] for name in OPERATIONS}, size=ratio(one.size_bytes, other.size_bytes)
        )
        for number, (one, other) in enumerate(pairs)
    ]


def ratio(value: float, reference: float) -> float:
    """How many times the reference; NaN where one is unknown."""
    return value / reference if reference else math.nan


def mean_ratios(relatives: Sequence[Mapping[str, Relative]], label: str) -> dict[str, float]:
    """The geometric mean of a method's ratios, by operation and `size`; NaN where one of them is unknown."""
    own = [each[label] for each in relatives if label in each]
    complete = len(own) == len(relatives)
    means = {
        name: geometric_mean([each.difference(name).ratio.estimate for each in own]) if complete else math.nan
        for name in OPERATIONS
    }
    return means | {"size": geometric_mean([each.size for each in own]) if complete else math.nan}
