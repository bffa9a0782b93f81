"""A verdict of the self-test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """One known truth, and whether the results agree with it."""

    passed: bool | None
    """None where this machine is too busy to tell."""
    what: str

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        return "unsure" if self.passed is None else "ok" if self.passed else "FAILED"
