"""Waiting for TensorStore, where everything is started before anything is waited for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def finished(futures: Iterable[Any]) -> list[Any]:
    """The results of all, or the first error once none is at work any more."""
    started = list(futures)
    for future in started:
        future.exception()
    return [future.result() for future in started]
