"""Runs cells, several at a time, every one in a process and a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ckpt.strategy import Strategy
from ckpt.workload.spec import StateSpec
from jobs.faults import cell, work_directory
from jobs.faults.budget import Budget
from jobs.faults.outcomes import DETECTED, RIGHT, SILENT, VERDICTS, Cell, Outcome
from jobs.faults.processes import ending, environment, last_line
from jobs.faults.subject import Subject

_LOOK_S = 0.5
"""How often the caller sees how the cells go."""


@dataclass(slots=True)
class Tally:
    """What has come of a cell so far.

    Attributes:
        method, use, fault: of the cell.
        counts: of cases, by verdict.
        smallest: the first of the smallest cases, by verdict.
        skipped: why it was not tried; empty if it was.
    """

    method: Strategy
    use: str
    fault: str
    counts: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, Outcome] = field(default_factory=dict)
    skipped: str = ""

    @property
    def name(self) -> str:
        """The cell's name, for people."""
        return f"{self.method.label} {self.use} {self.fault}"

    def add(self, outcome: Outcome) -> None:
        """Count a case."""
        self.counts[outcome.verdict] += 1
        if outcome.verdict not in self.smallest or outcome.size < self.smallest[outcome.verdict].size:
            self.smallest[outcome.verdict] = outcome

    def cell(self) -> Cell:
        """Build what is kept; of a cell that could not be tried to the end only the reason is."""
        names = self.method.label, self.use, self.fault
        if self.skipped:
            return Cell(*names, skipped=self.skipped)
        worst = max(self.smallest, key=VERDICTS.index, default="")
        return Cell(
            *names,
            right=self.counts[RIGHT],
            detected=self.counts[DETECTED],
            silent=self.counts[SILENT],
            case=self.smallest[worst].what if worst else "",
        )


class Runner:
    """Runs cells; a context, which ends those that run, with their processes, and removes what they wrote.

    Args:
        spec: of the state that is saved.
        budget: of every cell.
        directory: the target's; a directory of this run's own is made in it, and removed.
    """

    def __init__(self, spec: StateSpec, budget: Budget, directory: Path) -> None:
        self._spec, self._budget, self._directory = spec, budget, directory
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._lock = threading.Lock()
        self._running: dict[int, tuple[Tally, subprocess.Popen[bytes]]] = {}
        self._stopped = False
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        self._root = self._resources.enter_context(work_directory.made_in(self._directory))
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for _tally, process in self._running.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        self._pool.shutdown(cancel_futures=True)
        self._resources.close()

    def run(self, planned: Sequence[Tally], look: Callable[[Sequence[Tally]], object]) -> Iterator[Tally]:
        """Run cells that have not begun; yields them as they end.

        Args:
            planned: the cells.
            look: is called with those that run, twice a second.
        """
        left = {self._pool.submit(self._one, number, tally) for number, tally in enumerate(planned)}
        while left:
            ended, left = wait(left, _LOOK_S, FIRST_COMPLETED)
            for future in ended:
                yield future.result()
            with self._lock:
                running = [tally for tally, _ in self._running.values()]
            look(running)

    def _one(self, number: int, tally: Tally) -> Tally:
        work = self._root / f"{number:03}"
        work.mkdir()
        subject = Subject(tally.method.name, tally.method.options, tally.use, self._spec)
        with tempfile.TemporaryFile() as errors:
            with self._lock:
                if self._stopped:
                    return tally
                process = subprocess.Popen(
                    cell.command(subject, tally.fault, work, self._budget), start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment(),
                )  # fmt: skip
                self._running[number] = tally, process
            with process:
                _read(process, tally)
                process.wait()  # before its standard input is closed, which ends it
            with self._lock:
                del self._running[number]
            if process.returncode != 0:
                errors.seek(0)
                reason = last_line(errors.read().decode(errors="replace"))
                tally.skipped = f"it failed with {ending(process.returncode)}: {reason}"
        work_directory.remove(work)
        return tally


def _read(process: subprocess.Popen[bytes], tally: Tally) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        values = json.loads(line)
        if "skipped" in values:
            tally.skipped = values["skipped"]
        else:
            tally.add(Outcome(**values))
