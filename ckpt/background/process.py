"""Saves in a process of its own: an interpreter without the program's lock, which maps the snapshot's memory.

It is started by its module's name, and not by a fork, which libraries' threads don't survive, nor by multiprocessing,
which imports the program's main module again.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ckpt.background.saver import BackgroundSaver, Done
from ckpt.background.snapshot import Placed
from ckpt.background.worker import receive, send
from ckpt.errors import CheckpointError
from ckpt.state.layout import State

_ENDS_WITHIN_S = 30


class ProcessSaver(BackgroundSaver):
    """Calls tasks in a process that waits for them; one that died is started again for the next task.

    A task, and what it returns or raises, must be picklable: a function of a module that can be imported, or a
    `functools.partial` of one.

    Args:
        prepare: called once in the process before the first task: imports, say.
    """

    def __init__(self, prepare: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self._prepare = prepare
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def helpers(self) -> list[int]:
        """The number of the process, once it is started."""
        return [self._process.pid] if self._process is not None and self._process.poll() is None else []

    def warm(self) -> None:
        """Start the process now, and return once it is ready.

        Raises:
            CheckpointError: if it can't be started, or its preparation fails.
        """
        if not self.helpers:
            self._launch()

    def _start(self, snapshot: list[Placed], task: Callable[[State], Any]) -> Future[Done]:
        self.warm()
        assert self._socket is not None  # it is launched
        future: Future[Done] = Future()
        channel, process = self._socket, self._process
        try:
            message = pickle.dumps((task, snapshot, self._memory.size_bytes))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"a save in another process needs what can be pickled, a function of a module, say: {error}"
            ) from error
        send(channel, message, [self._memory.descriptor])

        def wait() -> None:
            try:
                kind, value = pickle.loads(receive(channel)[0])  # noqa: S301  # from our own process, by a private socket
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                future.set_exception(CheckpointError(_how_it_ended(process, error)))
                return
            if kind == "done":
                future.set_result(value)
            else:
                future.set_exception(value)

        threading.Thread(target=wait, name="checkpoint-process").start()
        return future

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        command = [sys.executable, "-m", "ckpt.background.worker", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # this interpreter
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self._socket = ours
        send(ours, pickle.dumps(self._prepare))
        try:
            kind, value = pickle.loads(receive(ours)[0])  # noqa: S301  # from our own process
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(_how_it_ended(self._process, error)) from error
        if kind != "done":
            raise value

    def close(self) -> None:
        """Wait for the save that is running; then end the process."""
        super().close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _how_it_ended(process: subprocess.Popen[bytes] | None, error: Exception) -> str:
    """What is known of a process that answers no more."""
    code = process.wait() if process is not None else None
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        reason = f"was ended by {name}" + (" (is there memory left?)" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {code} ({type(error).__name__})"
    return f"the process that saves behind the program {reason}: its checkpoint is not committed"
