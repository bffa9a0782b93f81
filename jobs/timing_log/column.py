"""A column of a timing log's table: a field of the row's dataclass, with its unit and its meaning."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def column(units: str, long_name: str, default: Any = MISSING) -> Any:
    """A column; one that came later than the first version has a default, for logs that lack it."""
    return field(default=default, metadata={"units": units, "long_name": long_name})
