"""Checks that a number given by a user is in its range."""

from __future__ import annotations

import math

from analysis.errors import ResultsError

POSITIVE = math.ulp(0.0)
"""The least value of a range that holds any number above zero."""


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse a number that isn't finite, or out of its range.

    Raises:
        ResultsError: naming the number and what was expected.
    """
    if math.isfinite(value) and least <= value <= most:
        return
    if most < math.inf:
        expected = f"a number from {least:g} to {most:g}"
    else:
        expected = "zero or a positive number" if least == 0 else "a positive number"
    raise ResultsError(f"{name} {value:g}: expected {expected}")
