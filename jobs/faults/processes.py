"""Python programs of this package in processes of their own."""

from __future__ import annotations

import os
import signal
import sys


def python(module: str, *arguments: str) -> list[str]:
    """Build the command of a module that is run as a program, with this Python."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Build the environment in which such a program finds the modules that this one finds."""
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    return os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def last_line(text: str) -> str:
    """Shorten what a program printed to its last line, which has the error if there is one."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


def ending(code: int) -> str:
    """Describe how a process ended, from its exit code; a negative one is a signal's number."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
