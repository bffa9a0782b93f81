"""Several facts as one text."""

from __future__ import annotations

from collections.abc import Mapping


def listed(facts: Mapping[str, str]) -> str:
    """`name=value` with commas between; the same facts make the same text, so that analysis can compare it."""
    return ", ".join(f"{name}={value}" for name, value in facts.items())
