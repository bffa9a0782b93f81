"""Waits for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST_S = 300  # for machines that are slow and busy


def until(condition: Callable[[], object], what: object = "what a test waits for") -> None:
    """Wait until a condition is met; an error names `what` didn't happen in five minutes."""
    end = time.monotonic() + _LONGEST_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not in {_LONGEST_S} s"
        time.sleep(0.01)
