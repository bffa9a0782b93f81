"""Questions to a filesystem whose server may be down: an answer, or the end of the process with what hangs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ckpt.cli import printable

T = TypeVar("T")

LOOK_S = 120.0
"""How long a look at a study's files may take."""

_NOTICE_S = 20.0
"""After that long, who waits learns what for."""


class _Work(threading.Thread, Generic[T]):
    """Work in a thread that doesn't keep the process from ending."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.result: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do it, and keep what came of it."""
        try:
            self.result.append(self._work())
        except BaseException as error:  # noqa: BLE001  # who waits raises it
            self.error = error


def bounded(path: Path, work: Callable[[], T], *, limit_s: float = LOOK_S) -> T:
    """What `work` returns or raises, which asks the filesystem of `path`.

    If that takes longer than `limit_s`, the process ends with exit code 2 and a message: a thread in a system call that
    doesn't return can't be ended otherwise.
    """
    thread = _Work(work)
    thread.start()
    thread.join(min(_NOTICE_S, limit_s))
    if thread.is_alive():
        if limit_s > _NOTICE_S:
            _tell(f"{path} has not answered for {_NOTICE_S:.0f} s: waiting for {_mount(path)}")
            thread.join(limit_s - _NOTICE_S)
        if thread.is_alive():
            _tell(
                f"error: {path} has not answered for {limit_s:.0f} s: is the server of {_mount(path)} down? Jobs that "
                f"are queued or run stay as they are. When `ls {path}` answers, repeat the command"
            )
            sys.stdout.flush()
            os._exit(2)
    if thread.error is not None:
        raise thread.error
    return thread.result[0]


def _tell(message: str) -> None:
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""  # a live table hides it
    print(show_cursor + printable(message), file=sys.stderr, flush=True)


def _mount(path: Path) -> str:
    """The filesystem of a path by the kernel's list: to ask the filesystem would hang."""
    best, words = "", "its filesystem"
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        source, mount_point, kind = line.split(" ")[:3]
        inside = f"{path.absolute()}/".startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, words = mount_point, f"{mount_point} ({kind}, {source})"
    return words
