"""How much is tried in one cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

_Number = Annotated[int, Parameter(validator=Number(gte=1))]


@dataclass(frozen=True, slots=True)
class Budget:
    """How many cases a cell has, where their number is a matter of choice.

    Attributes:
        seed: of what is drawn at random.
        kills: how many programs are killed for a cell of the table.
        flips: how many bits are flipped for a cell, one at a time.
        calls: how many calls of one kind fail for a cell, one at a time.
        cuts: how many states of a power cut are tried for a cell, or more: some after every call of the save, always.
    """

    seed: int = 0
    kills: _Number = 20
    flips: _Number = 200
    calls: _Number = 12
    cuts: _Number = 1
