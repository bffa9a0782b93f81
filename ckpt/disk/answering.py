"""Whether the filesystem of a directory answers at all.

A system call to a server that is down may never return, and nothing ends it: neither a signal nor the end of the
process. So another process makes the first one, and this one stays free to say what hangs, and to end.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_PROGRAM = Path(__file__).with_name("look.py")

NOTICE_S = 20.0
"""After that long, who waits learns what for."""

_GONE = frozenset({
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EIO,
    errno.ENETUNREACH, errno.ENODEV, errno.ENOTCONN, errno.ESHUTDOWN, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip
"""Errors of a filesystem whose server or device is gone. Any other is an answer."""

_left: list[subprocess.Popen[str]] = []
"""Processes that hang and can't be ended: nobody waits for them."""


def silence(
    path: Path,
    limit_s: float,
    *,
    read: Sequence[str] = (),
    write: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> str:
    """Say what a directory's filesystem does instead of answering, such as `has not answered for 20 s`; or nothing.

    Args:
        path: the directory; one that doesn't exist is an answer.
        limit_s: how long to wait.
        read: files in it that are read too: servers of metadata may answer where those of data hang.
        write: write a small file too, which leaves no trace.
        tell: is given a line after `NOTICE_S`.
    """
    command = [sys.executable, "-I", "-S", str(_PROGRAM), str(path), "write" if write else "read", *read]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    answer = _answer(child, min(NOTICE_S, limit_s))
    if answer is None and limit_s > NOTICE_S:
        tell(f"{path} has not answered for {NOTICE_S:.0f} s: waiting for {mount_in_words(path)}")
        answer = _answer(child, limit_s - NOTICE_S)
    if answer is None:
        child.kill()
        if _answer(child, 0.1) is None:
            _left.append(child)
        return f"has not answered for {limit_s:.0f} s"
    return f"can't be used ({os.strerror(answer)})" if answer in _GONE else ""


def is_it_down(path: Path) -> str:
    """Ask whoever reads a message whether the server of a path is down."""
    return f"is the server of {mount_in_words(path)} down?"


def _answer(child: subprocess.Popen[str], limit_s: float) -> int | None:
    """Return the number of the error that a look ended with, or 0; None while it goes on."""
    try:
        printed, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None
    return int(printed) if printed.strip().isdigit() else 0


def mount_in_words(path: Path) -> str:
    """Name the filesystem of a path by the kernel's list of mounts: to ask the filesystem would hang."""
    best, words = "", "its filesystem"
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    for line in lines:
        source, mount_point, kind = line.split(" ")[:3]
        inside = f"{path.absolute()}/".startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, words = mount_point, f"{mount_point} ({kind}, {source})"
    return words
