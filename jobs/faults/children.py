"""Work in a forked process, which something may befall once everything is prepared: calls fail, or a signal comes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

LONGEST_S = 100
"""Of the work. A fork lacks its parent's threads; one that waits for them is ended."""

_PENDING, _RETURNED, _RAISED = range(3)
_REPORT = struct.Struct("<bdi")  # one of the above, the duration in seconds, the length of the error's text
_REPORT_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Ending:
    """How some work ended.

    Attributes:
        returned: whether it returned without an error, whatever happened to its process afterwards.
        error: the type and the text of what it raised; empty if it raised nothing.
        signal: that ended the process; 0 if none did.
        duration_s: from its beginning to its return, or to its error.
    """

    returned: bool
    error: str = ""
    signal: int = 0
    duration_s: float = 0.0

    @property
    def what(self) -> str:
        """What happened, in words that follow "the save"."""
        if self.returned:
            return "returns"
        if self.error:
            return "raises " + self.error.partition("\n")[0][:200]
        if self.signal == signal.SIGALRM:
            return f"hangs for {LONGEST_S} s"
        return f"is ended by {signal.Signals(self.signal).name}" if self.signal else "ends its process without an error"


class Child:
    """A forked process that prepares some work, stops, and does the work when it goes on.

    Its report is in memory that it shares with its parent, so that no failing call can change it.
    """

    def __init__(self, prepare: Callable[[], Callable[[], object]]) -> None:
        """Fork, and wait until the child has stopped.

        Args:
            prepare: called in the child; returns the work.

        Raises:
            ChildProcessError: if the child ended before.
        """
        self._report = mmap.mmap(-1, _REPORT_BYTES)
        self.pid = os.fork()
        if not self.pid:
            self._live(prepare)
        status = os.waitpid(self.pid, os.WUNTRACED)[1]
        if not os.WIFSTOPPED(status):
            raise ChildProcessError(f"the process that saves {self._ending(status).what} before its save")

    def _live(self, prepare: Callable[[], Callable[[], object]]) -> NoReturn:
        started_s = time.perf_counter()
        try:
            _let_be_traced()
            for number in (signal.SIGALRM, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)  # the parent may have handlers of its own
            work = prepare()
            os.kill(os.getpid(), signal.SIGSTOP)
            signal.alarm(LONGEST_S)
            started_s = time.perf_counter()
            work()
            self._write(_RETURNED, time.perf_counter() - started_s)
        except BaseException as error:  # noqa: BLE001  # the parent sees it
            self._write(_RAISED, time.perf_counter() - started_s, f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)

    def _write(self, outcome: int, duration_s: float, text: str = "") -> None:
        data = text.encode(errors="replace")[: _REPORT_BYTES - _REPORT.size]
        self._report[_REPORT.size : _REPORT.size + len(data)] = data
        _REPORT.pack_into(self._report, 0, outcome, duration_s, len(data))

    def go_on(self) -> None:
        """Let it do its work."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it, if it hasn't ended and been waited for."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def ending(self) -> Ending:
        """Wait until it has ended."""
        return self._ending(os.waitpid(self.pid, 0)[1])

    def _ending(self, status: int) -> Ending:
        outcome, duration_s, length = _REPORT.unpack_from(self._report)
        error = self._report[_REPORT.size : _REPORT.size + length].decode(errors="replace")
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ending(outcome == _RETURNED, error, ended_by, duration_s)


def _let_be_traced() -> None:
    """Let strace attach where Yama allows that to ancestors only, and end with the parent."""
    set_end_signal, set_tracer = 1, 0x59616D61  # PR_SET_PDEATHSIG, PR_SET_PTRACER
    libc = ctypes.CDLL(None)
    libc.prctl(set_end_signal, signal.SIGKILL, 0, 0, 0)
    libc.prctl(set_tracer, ctypes.c_ulong(-1), 0, 0, 0)
