"""The clock of a job: monotonic, with a zero whose calendar time is known, and the same zero on every rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ckpt.process_group.store_group import StoreGroup
from jobs.node import received

_ROUND_TRIPS = 20
"""The shortest of so many is the one that nothing held up."""


class Clock:
    """Seconds since a zero whose calendar time is known; monotonic."""

    def __init__(self, zero_unix_s: float | None = None, least_s: float = 0.0) -> None:
        """Begin at zero; or, in a log that is continued, keep its zero.

        Args:
            zero_unix_s: the log's.
            least_s: the last time in the log; later ones follow it, though the calendar was set back meanwhile.
        """
        self._zero = time.perf_counter()
        self.zero_unix_s = time.time()
        if zero_unix_s is not None:
            self._zero -= max(self.zero_unix_s - zero_unix_s, least_s)
            self.zero_unix_s = zero_unix_s

    def __call__(self) -> float:
        """Seconds since the zero."""
        return time.perf_counter() - self._zero

    def at(self, reading_s: float) -> float:
        """Seconds since the zero at a reading of `time.perf_counter()`, in this process or in another on its node."""
        return reading_s - self._zero

    def advance(self, offset_s: float) -> None:
        """Go ahead by so much, to agree with another clock."""
        self._zero -= offset_s


def agree(ranks: StoreGroup, clock: Clock) -> float:
    """Set every rank's clock to the first one's; every rank calls it.

    A rank asks the first one for its time, which it read half a round trip before the answer came (Cristian's method).

    Returns:
        How far this rank's clock may be from the first one's at most, in s: half the shortest round trip.
    """
    if ranks.rank == 0:
        for rank in range(1, ranks.size):
            for _ in range(_ROUND_TRIPS):
                ranks.receive(rank)
                ranks.send(rank, clock())
        return 0.0
    uncertainty_s, offset_s = min(_round_trips(ranks, clock))
    clock.advance(offset_s)
    return uncertainty_s


def _round_trips(ranks: StoreGroup, clock: Clock) -> Iterator[tuple[float, float]]:
    """Half the time of every round trip, and by how much the first rank's clock is ahead; in s."""
    for _ in range(_ROUND_TRIPS):
        asked = clock()
        ranks.send(0, None)
        first_s = ranks.read([ranks.receive(0)], received.number)[0]
        answered = clock()
        yield (answered - asked) / 2, first_s - (asked + answered) / 2


def describe_clock() -> dict[str, Any]:
    """The clock that durations are taken with."""
    info = time.get_clock_info("perf_counter")
    return {"clock": info.implementation, "clock_resolution_s": info.resolution}
