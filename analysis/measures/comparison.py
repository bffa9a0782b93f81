"""Compares the methods of a setting with a reference: ratios with intervals, and corrected verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.errors import ResultsError
from analysis.logs.frames import Results
from analysis.measures.differences import Difference, differences
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.setting import REFERENCE, Setting, settings


@dataclass(frozen=True, slots=True)
class Relative:
    """How one method differs from another; a ratio is the value of the first over that of the second."""

    operations: Mapping[Operation, Difference]
    size: float
    """The ratio of sizes, which are counted and not timed; NaN where one is unknown."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The methods of a setting, compared with one of them."""

    setting: Setting
    reference: str
    """The label of the method that the others are compared with."""
    differences: Mapping[str, Relative]
    """How the others differ from it, by label; empty where it is not among the methods."""


def compare(results: Results, reference: str = "") -> list[Comparison]:
    """Compare methods: one comparison per setting.

    Args:
        results: the frames.
        reference: the label of the method that others are compared with; `REFERENCE` by default.

    Raises:
        ResultsError: if no method has the label of the reference.
    """
    labels = sorted(set(results.jobs["label"].dropna()))
    if reference and reference not in labels:
        raise ResultsError(f"no method is called {reference!r}: name one of {', '.join(labels)}")
    chosen = reference or REFERENCE
    return [
        Comparison(setting, chosen, _differences_from(chosen, setting.methods)) for setting in settings(results, chosen)
    ]


def _differences_from(reference: str, methods: Sequence[Method]) -> dict[str, Relative]:
    """Compare all other methods with the reference; ps are corrected for all of them, separately per operation."""
    base = next((method for method in methods if method.label == reference), None)
    if base is None:
        return {}
    others = [method for method in methods if method is not base]
    relatives = related([(method, base) for method in others], methods)
    return {method.label: relative for method, relative in zip(others, relatives, strict=True)}


def related(
    pairs: Sequence[tuple[Method, Method]], among: Sequence[Method] = (), *, shared_rounds: bool = True
) -> list[Relative]:
    """Compare the first method of every pair with the second; the ps are corrected for all pairs of an operation.

    Args:
        pairs: of methods.
        among: all methods of the rounds in which these were measured.
        shared_rounds: False where the sides of a pair come from two studies.
    """
    by_operation = {
        operation: differences(
            [(one[operation], other[operation]) for one, other in pairs],
            [method[operation] for method in among],
            shared_rounds=shared_rounds,
        )
        for operation in Operation
    }
    return [
        Relative(
            {operation: by_operation[operation][number] for operation in Operation},
            ratio(one.files.size_bytes, other.files.size_bytes),
        )
        for number, (one, other) in enumerate(pairs)
    ]


def ratio(value: float, reference: float) -> float:
    """Return how many times the reference a value is; NaN where one is unknown."""
    return value / reference if reference else math.nan
