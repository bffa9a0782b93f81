"""How much is tried in one cell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """How many cases a cell has, where their number is a matter of choice.

    Attributes:
        seed: of what is drawn at random.
        kills: programs that are killed.
        flips: bits that are flipped, one at a time.
        calls: how many calls of one kind are made to fail, one at a time.
        draws: at every moment of a power cut, how often to draw what is left of what no sync covers.
    """

    seed: int = 0
    kills: int = 20
    flips: int = 200
    calls: int = 12
    draws: int = 1
