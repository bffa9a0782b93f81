"""Names the operations that are measured: a save, and the loads by the state of the page cache before them."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import pandas as pd

from jobs.timing_log import LOAD_INTO, SAVE

Direction = Literal["write", "read"]
"""The direction of a ceiling: saves write, loads read."""


class Operation(Enum):
    """A save or a kind of load, in the order of the tables.

    The value is a load's `cache` in the timing log; of a load into memory that existed, with `into` before it.
    """

    SAVE = "save"
    LOAD_COLD = "cold"
    LOAD_CLIENT_COLD = "client-cold"
    LOAD_UNPROVEN = "cold-unproven"
    LOAD_WARM = "warm"
    INTO_COLD = "into cold"
    INTO_CLIENT_COLD = "into client-cold"
    INTO_UNPROVEN = "into cold-unproven"

    @property
    def cache(self) -> str:
        """The state of the caches before a load, as tables name it."""
        cold = _COLD_OF.get(self, self)
        return _CACHES.get(cold, cold.value)

    @property
    def label(self) -> str:
        """The operation as tables and figures name it."""
        if self is Operation.SAVE:
            return "save"
        return f"load in place, {self.cache}" if self in _COLD_OF else f"load, {self.cache}"

    @property
    def direction(self) -> Direction:
        """The ceiling that the operation is compared with."""
        return "write" if self is Operation.SAVE else "read"


_CACHES = {
    Operation.LOAD_COLD: "cold from the device",
    Operation.LOAD_CLIENT_COLD: "not in this node's cache",
    Operation.LOAD_UNPROVEN: "cold unproven",
}

_COLD_OF = {
    Operation.INTO_COLD: Operation.LOAD_COLD,
    Operation.INTO_CLIENT_COLD: Operation.LOAD_CLIENT_COLD,
    Operation.INTO_UNPROVEN: Operation.LOAD_UNPROVEN,
}

LOADS_IN_PLACE = tuple(_COLD_OF)
"""The loads into memory that existed, in the order of `COLD_LOADS`. They are compared with no other load."""

COLD_LOADS = (Operation.LOAD_COLD, Operation.LOAD_CLIENT_COLD, Operation.LOAD_UNPROVEN)
"""The loads that were to be cold, by what is known of the caches: they are not compared with each other."""

LOADS = (*COLD_LOADS, Operation.LOAD_WARM)
"""The loads, beginning with the one that is nearest to a restart from storage."""


def kinds_of(operations: pd.Series, caches: pd.Series) -> pd.Series:
    """Return the values of the `Operation` of samples, given their operations and caches in the timing log."""
    loads = caches.where(operations != LOAD_INTO, "into " + caches)
    return loads.where(operations != SAVE, Operation.SAVE.value)
