"""Saves of one subject that something befalls: their calls fail, or their process is killed.

`Saves` has a worker, `python -m jobs.faults.saving SUBJECT`, which imports the libraries once, reads a line of JSON
with a `Request`, forks a process that saves, and answers with a line of JSON. What the forked process needs (imports,
the state, threads of libraries) it has before anything befalls it: it has saved before, elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from jobs.errors import StudyError
from jobs.faults import processes
from jobs.faults.children import Child, Ending
from jobs.faults.injecting import injected
from jobs.faults.lost_writes import MOVES
from jobs.faults.subject import OLD, Subject

_NOT_AFTER_A_FORK = {"tensorstore", "orbax.checkpoint"}
"""Libraries that must be imported in the process that uses them."""

_BETWEEN_SIGNALS_S = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """A save, and what befalls it.

    Attributes:
        root: the directory below which it saves.
        values: the step whose state it saves.
        step: the step as which it saves that.
        rehearsal: a directory that doesn't exist, for a save before, which starts what a save needs; empty for none.
        faults: as `injecting.injected` takes them.
        log: where strace writes these calls, and those of `MOVES`.
        signals: that the process gets, in that order.
        after_s: how long the save may go on before.
    """

    root: str
    values: int
    step: int
    rehearsal: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    log: str = ""
    signals: tuple[int, ...] = ()
    after_s: float = 0.0

    def save(self, subject: Subject) -> Ending:
        """Save in a forked process.

        Raises:
            ChildProcessError: if it can't be tried.
        """
        child = Child(lambda: self._prepared(subject))
        try:
            if not self.faults:
                return self._signalled(child)
            with injected(child.pid, self.faults, Path(self.log), others=MOVES):
                child.go_on()
                return child.ending()
        except BaseException:
            child.kill()
            raise

    def _prepared(self, subject: Subject) -> Callable[[], object]:
        """Import, build and start everything; returns the save."""
        _be_silent()
        subject.method.prepare()
        if self.rehearsal:
            Path(self.rehearsal).mkdir()
            subject.save(subject.state_at(OLD), OLD, Path(self.rehearsal))
            shutil.rmtree(self.rehearsal)
        state = subject.state_at(self.values)
        return lambda: subject.save(state, self.step, Path(self.root))

    def _signalled(self, child: Child) -> Ending:
        child.go_on()
        if self.signals:
            time.sleep(self.after_s)
        for number in self.signals:
            os.kill(child.pid, number)
            time.sleep(_BETWEEN_SIGNALS_S)
        return child.ending()


class Saves:
    """Saves of one subject; a context, which ends the worker."""

    def __init__(self, subject: Subject) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the context
        self._worker = subprocess.Popen(
            processes.python("jobs.faults.saving", subject.to_json()),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=processes.environment(), bufsize=0,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.close()
        self._worker.stdout.close()
        self._worker.kill()  # a save in progress ends with it
        self._worker.wait()
        self._errors.close()

    def save(self, request: Request) -> Ending:
        """Save as `Request.save` does.

        Raises:
            StudyError: if that can't be tried.
        """
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        try:
            self._worker.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            answer = self._worker.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            self._errors.seek(0)
            reason = processes.last_line(self._errors.read().decode(errors="replace"))
            raise StudyError(f"the process that saves ended with {processes.ending(self._worker.wait())}: {reason}")
        values: dict[str, Any] = json.loads(answer)
        if "problem" in values:
            raise StudyError(values["problem"])
        return Ending(**values)


def _be_silent() -> None:
    """Keep what libraries print away from the worker's answers."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _answer(subject: Subject, line: str) -> dict[str, Any]:
    try:
        return asdict(Request(**json.loads(line)).save(subject))
    except ChildProcessError as error:
        return {"problem": str(error)}


def main(subject_json: str) -> None:
    """Serve saves until the other end of standard input is closed."""
    import torch

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends it
    torch.set_num_threads(1)
    subject = Subject.from_json(subject_json)
    if not _NOT_AFTER_A_FORK & set(subject.method.requires):
        subject.method.prepare()
    for line in sys.stdin:
        print(json.dumps(_answer(subject, line)), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
