"""Names the operations that are measured: a save, and the loads by the state of the page cache before them."""

from __future__ import annotations

from enum import Enum
from typing import Literal

Direction = Literal["write", "read"]
"""The direction of a ceiling: saves write, loads read."""


class Operation(Enum):
    """A save or a kind of load, in the order of the tables. The value is a load's `cache` in the timing log."""

    SAVE = "save"
    LOAD_COLD = "cold"
    LOAD_CLIENT_COLD = "client-cold"
    LOAD_UNPROVEN = "cold-unproven"
    LOAD_WARM = "warm"

    @property
    def cache(self) -> str:
        """The state of the caches before a load, as tables name it."""
        return _CACHES.get(self, self.value)

    @property
    def label(self) -> str:
        """The operation as tables and figures name it."""
        return "save" if self is Operation.SAVE else f"load, {self.cache}"

    @property
    def direction(self) -> Direction:
        """The ceiling that the operation is compared with."""
        return "write" if self is Operation.SAVE else "read"


_CACHES = {
    Operation.LOAD_COLD: "cold from the device",
    Operation.LOAD_CLIENT_COLD: "not in this node's cache",
    Operation.LOAD_UNPROVEN: "cold unproven",
}

COLD_LOADS = (Operation.LOAD_COLD, Operation.LOAD_CLIENT_COLD, Operation.LOAD_UNPROVEN)
"""The loads that were to be cold, by what is known of the caches: they are not compared with each other."""

LOADS = (*COLD_LOADS, Operation.LOAD_WARM)
"""The loads, beginning with the one that is nearest to a restart from storage."""
