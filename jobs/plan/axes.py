"""Options that are lists are axes: one strategy of a study becomes one for each combination; pure, no I/O."""

from __future__ import annotations

import itertools
from typing import Any

from ckpt import strategy
from ckpt.errors import ContradictionError
from ckpt.strategy import Strategy


def expand(name: str, options: dict[str, Any]) -> tuple[list[Strategy], list[str]]:
    """Every combination of a strategy's list-valued options.

    Returns:
        The strategies, in the order of the lists, the first option changing slowest; and why combinations were
        dropped that make no sense together.

    Raises:
        UnknownStrategyError: if the strategy, an option or a value doesn't exist, or no combination is left.
    """
    axes = {key: value for key, value in options.items() if isinstance(value, list)}
    found: list[Strategy] = []
    dropped: list[str] = []
    for values in itertools.product(*axes.values()):
        try:
            found.append(strategy.create(name, options | dict(zip(axes, values, strict=True))))
        except ContradictionError as error:
            if not axes:
                raise
            dropped.append(str(error))
    if not found:
        reasons = (
            "; ".join(dropped) or f"an axis is empty ({', '.join(key for key, value in axes.items() if not value)})"
        )
        raise ContradictionError(f"strategy {name}: no combination of its options is left: {reasons}")
    return found, dropped
