"""Waiting for several TensorStore operations that were all started before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def wait_all(futures: Iterable[Any]) -> list[Any]:
    """Return the results of all futures, or raise the first error once all have ended."""
    started = list(futures)
    for future in started:
        future.exception()
    return [future.result() for future in started]
