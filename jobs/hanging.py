"""Questions to a filesystem whose server may be down: an answer, or the end of the process with what hangs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from ckpt.cli import printable
from ckpt.disk.answering import NOTICE_S, is_it_down, mount_in_words, silence
from jobs.paths import StudyPaths

T = TypeVar("T")

LOOK_S = 120.0
"""How long a look at a study's files may take."""

_answering: set[Path] = set()
"""Directories whose filesystems have answered this process."""


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

    If that takes longer than `limit_s`, the process ends with exit code 2 and a message. The first time another process
    asks, since one with a thread in a system call that doesn't return may not be able to end.
    """
    must_answer(path, limit_s=limit_s)
    thread = _Work(work)
    thread.start()
    thread.join(min(NOTICE_S, limit_s))
    if thread.is_alive():
        if limit_s > NOTICE_S:
            tell(f"{path} has not answered for {NOTICE_S:.0f} s: waiting for {mount_in_words(path)}")
            thread.join(limit_s - NOTICE_S)
        if thread.is_alive():
            _end(path, f"has not answered for {limit_s:.0f} s")
    if thread.error is not None:
        raise thread.error
    return thread.result[0]


def must_answer(path: Path, *, limit_s: float = LOOK_S) -> None:
    """End the process with exit code 2 and a message if the filesystem of `path` doesn't answer; once for a path."""
    if path not in _answering:
        if silent := silence(path, limit_s, read=[StudyPaths(path).plan_json.name], tell=tell):
            _end(path, silent)
        _answering.add(path)


def _end(path: Path, silent: str) -> NoReturn:
    tell(
        f"error: {path} {silent}: {is_it_down(path)} Jobs that are queued or run stay as they are. When `ls {path}` "
        "answers, repeat the command"
    )
    sys.stdout.flush()
    os._exit(2)


def tell(message: str) -> None:
    """Print a line for whoever waits."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""  # a live table hides it
    print(show_cursor + printable(message), file=sys.stderr, flush=True)
