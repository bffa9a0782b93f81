"""The process that saves behind a program: started by `ProcessSaver`, and ended with the program.

    python -m ckpt.background.worker CONNECTION MEMORY PROGRAM

The first two arguments are open descriptors, the last is the program's process number. Messages are pickles: what to
call first, then one task after the other; the answer is what it returned or raised. An empty message ends it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

_FROM_A_TERMINAL_OR_SLURM = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU
)  # fmt: skip
"""Signals that reach all processes of a program. What they mean for a save, the program decides."""

_LOOKS_EVERY_S = 0.5


def main(connection: int, memory: int, program: int) -> None:
    """Do what is sent, until the program asks to end, or has ended."""
    for number in _FROM_A_TERMINAL_OR_SLURM:
        signal.signal(number, signal.SIG_IGN)
    for descriptor in (connection, memory):
        os.set_inheritable(descriptor, False)
    threading.Thread(target=_end_with, args=(program,), daemon=True).start()
    with Connection(connection) as channel, suppress(BrokenPipeError):  # the program has ended
        work: Callable[[bytes], Any] = _prepare
        saving = _Saving(memory)
        while message := _next(channel):
            answer = _answer(work, message)
            _flush()  # what the task printed comes before what the program prints next
            channel.send_bytes(answer)
            work = saving.run


def _end_with(program: int) -> None:
    """End this process, in the middle of a save too, once the program has: another one may save there already.

    The connection doesn't tell: a child that the program forked may hold its other end.
    """
    while os.getppid() == program:
        time.sleep(_LOOKS_EVERY_S)
    os._exit(1)


def _next(channel: Connection) -> bytes:
    try:
        return channel.recv_bytes()
    except (EOFError, OSError):
        return b""


def _prepare(message: bytes) -> None:
    import torch  # noqa: F401  # every task needs it

    prepare = _read(message)
    if prepare is not None:
        prepare()


class _Saving:
    """Runs tasks with snapshots; the memory stays mapped, until it grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mapped: mmap | None = None

    def run(self, message: bytes) -> Any:
        from ckpt.background.saver import Done
        from ckpt.background.snapshot import map_memory, tensors_in
        from ckpt.disk import io_plan

        task, snapshot, size_bytes, plans = _read(message)
        io_plan.adopt(plans)
        if self._mapped is None or len(self._mapped) != size_bytes:
            self._mapped = map_memory(self._descriptor, size_bytes)
        started_s = time.process_time()
        value = task(tensors_in(self._mapped, snapshot))
        return Done(value, time.process_time() - started_s)


def _read(message: bytes) -> Any:
    from ckpt.errors import CheckpointError

    try:
        return pickle.loads(message)  # noqa: S301  # from the program that started this process
    except Exception as error:
        raise CheckpointError(
            f"the process that saves can't import what it is to call ({type(error).__name__}: {error}): a save in "
            "another process needs a function of an importable module, and not of the program's main script"
        ) from error


def _answer(work: Callable[[bytes], Any], message: bytes) -> bytes:
    """Do something; returns the message with what it returned or raised."""
    from ckpt.errors import CheckpointError

    try:
        value = work(message)
    except Exception as error:  # noqa: BLE001  # raised in the program
        return _with_error(error)
    try:
        return pickle.dumps((value, None))
    except Exception as error:  # noqa: BLE001  # whatever an object's own pickling raises
        text = f"what the save returned can't be sent to the program ({type(error).__name__}: {error})"
        return _with_error(CheckpointError(f"{text}: let the task return what can be pickled"))


def _with_error(error: Exception) -> bytes:
    """The message with an error; as a CheckpointError that names its type if it doesn't survive pickling."""
    from ckpt.errors import CheckpointError

    error.add_note("In the process that saves:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        message = pickle.dumps((None, error))
        copy = pickle.loads(message)[1]  # noqa: S301  # just made
        if type(copy) is type(error) and str(copy) == str(error):
            return message
    except Exception:  # noqa: BLE001, S110  # whatever an exception's own pickling raises
        pass
    return pickle.dumps((None, CheckpointError(f"{type(error).__name__}: {error}")))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
