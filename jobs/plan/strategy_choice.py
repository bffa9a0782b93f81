"""A strategy as a study names it, and the methods that it stands for."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

from pydantic import Field

from ckpt import registry
from ckpt.errors import ContradictionError
from ckpt.strategy import Strategy
from jobs.plan.table import Table


class StrategyChoice(Table):
    """A strategy with its options, as a study names it; an option that is a list is an axis."""

    name: str
    options: dict[str, Any] = Field(default={})

    @property
    def methods(self) -> tuple[Strategy, ...]:
        """The strategies, in the order of the lists, the first option changing slowest.

        Raises:
            UnknownStrategyError: if the strategy, an option or a value doesn't exist, or no combination is left.
        """
        return self._expanded[0]

    @property
    def dropped(self) -> tuple[str, ...]:
        """Why combinations of options were dropped that make no sense together."""
        return self._expanded[1]

    @cached_property
    def _expanded(self) -> tuple[tuple[Strategy, ...], tuple[str, ...]]:
        axes = {key: value for key, value in self.options.items() if isinstance(value, list)}
        methods: list[Strategy] = []
        dropped: list[str] = []
        for values in itertools.product(*axes.values()):
            try:
                methods.append(registry.create(self.name, self.options | dict(zip(axes, values, strict=True))))
            except ContradictionError as error:
                if not axes:
                    raise
                dropped.append(str(error))
        if not methods:
            empty = ", ".join(key for key, value in axes.items() if not value)
            reasons = "; ".join(dropped) or f"an axis is empty ({empty})"
            raise ContradictionError(f"strategy {self.name}: no combination of its options is left: {reasons}")
        return tuple(methods), tuple(dropped)
