"""Restarts from damaged checkpoints, in a process that may crash, hang or run out of memory.

`Restarts` has a worker, `python -m jobs.faults.restarting SUBJECT`, which imports the libraries once, reads a line of
JSON with a directory, restarts from it, and answers with a line of JSON. A worker that ends or hangs is replaced.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from jobs.errors import StudyError
from jobs.faults.processes import ending, environment, last_line, python
from jobs.faults.subject import Restart, Subject

LONGEST_S = 60.0
"""Of a restart: the state is small."""

_LONGEST_START_S = 600.0
"""Of a worker, which imports libraries."""

_MEMORY_BYTES = 8 * 2**30
"""Addresses that a worker may take: libraries reserve many, and a damaged length must not take the machine's memory."""

_READY = "ready"


class Restarts:
    """Restarts of one subject; a context, which ends the worker."""

    def __init__(self, subject: Subject, *, longest_s: float = LONGEST_S) -> None:
        self._subject, self._longest_s = subject, longest_s
        self._worker: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def restart(self, root: Path) -> Restart:
        """Load the newest checkpoint below a directory, as `Subject.restart` does.

        Raises:
            StudyError: if no worker can be started.
        """
        worker = self._worker or self._start()
        try:
            _send(worker, str(root))
            answer = _answer(worker, self._longest_s)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self._end()
            return Restart(None, f"the restart hangs: no answer in {self._longest_s:.0f} s", is_error=True)
        if not answer:
            code = self._end()
            return Restart(None, f"the restart's process ends with {ending(code)}", is_error=True)
        return Restart(**json.loads(answer))

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors.truncate(0)
        self._worker = worker = subprocess.Popen(
            python("jobs.faults.restarting", self._subject.to_json()),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment(), bufsize=0,
        )  # fmt: skip
        answer = _answer(worker, _LONGEST_START_S)
        if not answer or json.loads(answer) != _READY:
            code = self._end()
            self._errors.seek(0)
            reason = last_line(self._errors.read().decode(errors="replace"))
            raise StudyError(f"the process that restarts ended with {ending(code)} before its first restart: {reason}")
        return worker

    def _end(self) -> int:
        worker, self._worker = self._worker, None
        if worker is None:
            return 0
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            pipe.close()
        try:
            return worker.wait(1)  # one that crashed has ended; its signal is of interest
        except subprocess.TimeoutExpired:
            worker.kill()
            return worker.wait()


def _send(worker: subprocess.Popen[bytes], message: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(message).encode() + b"\n")


def _answer(worker: subprocess.Popen[bytes], longest_s: float) -> bytes | None:
    """The worker's next line: empty if it has ended, None if it takes too long."""
    assert worker.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        return worker.stdout.readline() if selector.select(longest_s) else None


def main(subject_json: str) -> None:
    """Serve restarts until the other end of standard input is closed."""
    import torch

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    subject = Subject.from_json(subject_json)
    subject.method.prepare()
    print(json.dumps(_READY), file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(subject.restart(Path(json.loads(line))))), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
