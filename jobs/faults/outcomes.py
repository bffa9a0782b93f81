"""What came of a study's faults, counted by method and fault, and the file that holds the counts.

Of every case there is one of three verdicts:

right       the restart has the newest state that a save returned for, or the one before it if the save did not return
detected    the restart ends with an error
silent      the restart goes on with other values, or with an older state although the save returned without an error
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ckpt.disk.durable import write_atomically

FILE = "faults.json"
"""In a study's directory of results."""

POWER_CUT, FAILED_CALL, KILL, BIT_ROT = "power-cut", "failed-call", "kill", "bit-rot"
FAULTS = (POWER_CUT, FAILED_CALL, KILL, BIT_ROT)

ALONE, COMMITTED = "alone", "committed"
USES = (ALONE, COMMITTED)
"""A method as its library's users call it, and with this package's commit, by `ckpt.save` and `ckpt.load`."""

RIGHT, DETECTED, SILENT = "right", "detected", "silent"
VERDICTS = (RIGHT, DETECTED, SILENT)
"""The better one first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case.

    Attributes:
        verdict: one of `VERDICTS`.
        what: the fault, and what the save and the restart did then, in one line.
        size: how much had happened before it, or how much it spoilt; of a cell's cases the smallest one is shown.
    """

    verdict: str
    what: str
    size: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One method, in one use, under one kind of fault.

    Attributes:
        method: its label.
        use: one of `USES`.
        fault: one of `FAULTS`.
        right, detected, silent: numbers of cases.
        case: the smallest one of the worst verdict.
        skipped: why it was not tried; empty if it was.
    """

    method: str
    use: str
    fault: str
    right: int = 0
    detected: int = 0
    silent: int = 0
    case: str = ""
    skipped: str = ""

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.right + self.detected + self.silent

    @property
    def verdict(self) -> str:
        """The worst one; empty if nothing was tried."""
        counts = {RIGHT: self.right, DETECTED: self.detected, SILENT: self.silent}
        return max((verdict for verdict in VERDICTS if counts[verdict]), key=VERDICTS.index, default="")


@dataclass(frozen=True, slots=True)
class FaultLog:
    """What came of a study's faults on one target.

    Attributes:
        study: its name.
        command: that repeats the study's faults, without options that select a cell.
        target: its name.
        filesystem: the type of what the target lies on.
        state_bytes: the logical size of the state that was saved.
        seed: of what is drawn at random.
        versions: of Python, the kernel and the libraries.
        cells: in the order of the study's methods.
    """

    study: str
    command: str
    target: str
    filesystem: str
    state_bytes: int
    seed: int
    versions: dict[str, str]
    cells: list[Cell] = field(default_factory=list)

    def command_of(self, cell: Cell) -> str:
        """The command that repeats one cell."""
        return f"{self.command} --method {shlex.quote(cell.method)} --use {cell.use} --fault {cell.fault}"

    def write(self, path: Path) -> None:
        """Write the file, whole and durably."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode(), sync=True)


def read(path: Path) -> FaultLog:
    """Read such a file.

    Raises:
        ValueError: if it is none; the message has the reason.
        OSError: if it can't be read.
    """
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    try:
        return TypeAdapter(FaultLog).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
