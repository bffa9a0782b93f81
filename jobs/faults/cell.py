"""One cell, in a process of its own: `python -m jobs.faults.cell SUBJECT FAULT WORK BUDGET`.

It writes a line of JSON for every outcome, and one with the reason if the cell can't be tried. If what reads them ends,
this process ends too, with all that it has started.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ckpt.errors import CheckpointError
from jobs.errors import StudyError
from jobs.faults.budget import Budget
from jobs.faults.outcomes import BIT_ROT, FAILED_CALL, KILL, POWER_CUT, Outcome
from jobs.faults.processes import python
from jobs.faults.subject import Subject

_MODULES = {POWER_CUT: "power_cut", FAILED_CALL: "failed_calls", KILL: "kills", BIT_ROT: "bit_rot"}
"""Every one has `outcomes(subject, work, budget)`."""


def command(subject: Subject, fault: str, work: Path, budget: Budget) -> list[str]:
    """Build the command that tries a fault in an empty directory."""
    return python("jobs.faults.cell", subject.to_json(), fault, str(work), json.dumps(asdict(budget)))


def outcomes(subject: Subject, fault: str, work: Path, budget: Budget) -> Iterator[Outcome]:
    """Try a fault on a subject; the texts leave out the directory, which has another name every time.

    Raises:
        StudyError: if it can't be tried.
        CheckpointError: if the subject can't save at all, or its library is missing.
    """
    subject.method.prepare()
    for outcome in importlib.import_module(f"jobs.faults.{_MODULES[fault]}").outcomes(subject, work, budget):
        yield replace(outcome, what=outcome.what.replace(f"{work}/", ""))


def main(subject_json: str, fault: str, work: str, budget_json: str) -> None:
    """Try it."""
    threading.Thread(target=_end_with_reader, daemon=True).start()
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print
    import torch

    torch.set_num_threads(1)
    budget = Budget(**json.loads(budget_json))
    try:
        for outcome in outcomes(Subject.from_json(subject_json), fault, Path(work), budget):
            print(json.dumps(asdict(outcome)), file=lines)
    except (StudyError, CheckpointError) as error:
        print(json.dumps({"skipped": str(error)}), file=lines)


def _end_with_reader() -> None:
    """Wait until the other end of standard input is closed, and end this process's group."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
