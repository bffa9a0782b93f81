"""What the measurements can't know about the job that is to be checkpointed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from analysis.advice.ranges import POSITIVE, check_range
from analysis.advice.thin import Restore

MTBF_HOURS = (1, 2, 4, 8, 24, 72, 168)
"""The mean times between failures of the tables: from a machine that is being commissioned to a week."""

Stall = Literal["committed", "call"]


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the measurements can't know about the job that is to be checkpointed."""

    mtbf_hours: float = 8.0
    """Mean time between failures of the whole job: of all its nodes together."""
    step_time_s: Annotated[float | None, Parameter(name="--step-time")] = None
    """Seconds of one training step, to have the interval in steps as well; by default those of the measured loop."""
    restore: Restore = "cold"
    """Which load a restart does: from storage, or on a node that still has the checkpoint in its page cache."""
    restart_s: float = 0.0
    """What a restart costs besides the load: noticing the failure, waiting for nodes, starting."""
    stall: Stall = "committed"
    """What stops the job where no loop was measured: the save until it is committed; or only the strategy's call, if
    sync and commit are done while the job computes.
    """

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ResultsError: if a number is out of range.
        """
        check_range("--mtbf-hours", self.mtbf_hours, POSITIVE)
        check_range("--restart-s", self.restart_s, 0)
        if self.step_time_s is not None:
            check_range("--step-time", self.step_time_s, POSITIVE)


USUAL = Assumptions()
