"""A calendar that goes back, as when a clock is set: a mock for Python's `time` and `datetime`, and files' times."""

from __future__ import annotations

import os
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Self

import pytest

DAY_S = 86_400.0


class SetBack:
    """Python's `time.time` and `time.time_ns`, a day earlier at every reading; the monotonic clocks go on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = time.time()
        self.readings = 0
        patch.setattr(time, "time", self)
        patch.setattr(time, "time_ns", lambda: int(self() * 1e9))

    def __call__(self) -> float:
        """Return the time after another day back."""
        self.now_s -= DAY_S
        self.readings += 1
        return self.now_s

    def stamp(self, root: Path) -> None:
        """Let everything below a directory have been written now."""
        now_s = self()
        for path in root.rglob("*"):
            os.utime(path, (now_s, now_s), follow_symlinks=False)


class Datetime(datetime):
    """The class that modules import, with the time of `time.time`; give it to a module instead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return the time."""
        return cls.fromtimestamp(time.time(), tz)
