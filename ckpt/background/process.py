"""Saves in a process of its own: an interpreter without the program's lock, which maps the snapshot's memory.

It is started by its module's name, and not by a fork, which libraries' threads don't survive, nor by multiprocessing,
which imports the program's main script again.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Pipe
from typing import Any

from ckpt import threads
from ckpt.background.saver import BackgroundSaver, Done
from ckpt.background.snapshot import Placed
from ckpt.disk import io_plan
from ckpt.errors import CheckpointError
from ckpt.state.layout import State

_ENDS_WITHIN_S = 30


class ProcessSaver(BackgroundSaver):
    """Calls tasks in a process that waits for them; one that died is started again for the next task.

    A task, its arguments, and what it returns, must be picklable: a function of a module that can be imported, or a
    `functools.partial` of one. An error keeps its type and message if it can be pickled; else a `CheckpointError` has
    both as text. What the process prints goes where the program prints.

    The process ignores the signals of a terminal and of Slurm, and ends with the program, in the middle of a save too
    if the program is killed. It writes and reads files by the plans that the program has (`ckpt.disk.io_plan`), and
    tries no filesystem again that the program has tried.

    Args:
        prepare: called once in the process before the first task: imports, say.
    """

    def __init__(self, prepare: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self._prepare = prepare
        self._worker: _Worker | None = None

    @property
    def helpers(self) -> list[int]:
        """The number of the process, while it runs."""
        worker = self._worker  # the thread that waits for it may end it
        return [worker.number] if worker is not None and worker.is_alive else []

    def warm(self) -> None:
        """Start the process now, which takes seconds, and return once it is ready; else the first save waits for it.

        Raises:
            CheckpointError: if it can't be started; or whatever its preparation raises.
        """
        if self._worker is not None and self._worker.is_alive:
            return
        message = _pickled(self._prepare)
        self._end()
        self._worker = _Worker(self._memory.descriptor)
        try:
            self._worker.call(message)
        except BaseException:  # an interrupt: it may still answer, and nobody would know to what
            self._worker.kill()
            self._end()
            raise

    def _start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        message = self._message(snapshot, task)
        return threads.start(lambda: self._call(message), "checkpoint")

    def _message(self, snapshot: list[Placed], task: Callable[[State], Any]) -> bytes:
        assert self._memory.mapped is not None  # the snapshot lies in it
        return _pickled((task, snapshot, len(self._memory.mapped), io_plan.known()))

    def _call(self, message: bytes) -> Done:
        self.warm()
        assert self._worker is not None  # it is warm
        done: Done = self._worker.call(message)
        return done

    def close(self) -> None:
        """Wait for the save that is running; then end the process. An interrupt ends both."""
        try:
            super().close()
        except BaseException:
            if self._worker is not None:
                self._worker.kill()
            raise
        finally:
            self._end()

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """The process, as the program sees it.

    Args:
        memory: the descriptor of the snapshot's memory.

    Raises:
        CheckpointError: if it can't be started.
    """

    def __init__(self, memory: int) -> None:
        self._channel, theirs = Pipe()
        descriptors = [theirs.fileno(), memory]
        # `-P`: the module comes from where the program's comes from, and not from the current directory.
        command = [sys.executable, "-P", "-m", "ckpt.background.worker", *map(str, descriptors), str(os.getpid())]
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=descriptors,
                    env=os.environ | {"PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # a terminal's Ctrl-C is for the program
                )
            except OSError as error:
                self._channel.close()
                raise CheckpointError(f"the process that saves can't be started: {error}") from error

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.poll() is None

    def call(self, message: bytes) -> Any:
        """Send a message, and wait for the answer.

        Raises:
            CheckpointError: if the process ended before it answered; or whatever was raised there.
        """
        try:
            self._channel.send_bytes(message)
            answer = self._channel.recv_bytes()
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{self._how_it_ended()}, before it answered") from error
        try:
            value, failure = pickle.loads(answer)  # noqa: S301  # from our own process, by a private connection
        except Exception as error:
            raise CheckpointError(
                f"the answer of the process that saves can't be read: {type(error).__name__}: {error}"
            ) from error
        if failure is not None:
            raise failure
        return value

    def _how_it_ended(self) -> str:
        self._wait()
        code = self._process.returncode
        if code >= 0:
            return f"the process that saves ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        reason = ", probably because memory ran out" if name == "SIGKILL" else ""
        return f"the process that saves was ended by {name}{reason}"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        with suppress(OSError):  # it has ended
            self._channel.send_bytes(b"")
        self._wait()
        self._channel.close()

    def _wait(self) -> None:
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pickled(task: Any) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise CheckpointError(
            f"a save in another process can't be sent there ({type(error).__name__}: {error}): it needs a function of "
            "a module that can be imported, or a functools.partial of one, and arguments that can be pickled"
        ) from error
