"""A table of the study file, and how one table lies over another."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A table of the study file: frozen, and no key that isn't known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """One table over another: a key's value from above, tables within merged in the same way."""
    both = {
        key: merged(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | both
