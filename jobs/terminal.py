"""What people read on a terminal: its width, and job ids that fit."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

_WITHOUT_TERMINAL = 200
"""Wide enough for a job id, which programs may look for."""


def wide_console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for a job id where it is none."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WITHOUT_TERMINAL, highlight=False)


@dataclass(frozen=True)
class JobId:
    """A job's id for a table: where a line is too short for it, it goes on behind a line break before a `+` or `-`."""

    job_id: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Between its longest part and all of it."""
        return Measurement(max(map(len, self._parts())), len(self.job_id))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The id on as few lines as it takes."""
        lines = [""]
        for part in self._parts():
            if lines[-1] and len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")

    def _parts(self) -> list[str]:
        return re.split(r"(?=[+-])", self.job_id)
