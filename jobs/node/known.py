"""Facts that may be unavailable: then they are `unknown`, with the reason in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER_S = 10
"""How long a program may take to answer."""

_ELSEWHERE = ("/usr/sbin", "/sbin", "/usr/lpp/mmfs/bin")
"""Where programs that a fact may need are found although no user's PATH has it."""


class UnknownFactError(Exception):
    """A fact can't be had; the message says why."""


def known(fact: Callable[[], Any]) -> Any:
    """The fact, or `unknown` with the reason: no missing fact may end a measurement."""
    try:
        return fact()
    except UnknownFactError as error:
        return f"unknown ({error})"
    except FileNotFoundError as error:
        return f"unknown (there is no {error.filename} here)"
    except PermissionError as error:
        return f"unknown (this user may not read {error.filename})"
    except Exception as error:  # noqa: BLE001  # see above
        return f"unknown ({type(error).__name__}: {error})"


def ask(*command: str) -> str:
    """What a program prints.

    Raises:
        UnknownFactError: if it isn't installed, fails, or doesn't answer in time.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ELSEWHERE])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise UnknownFactError(f"the program {command[0]} is not installed here")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=True, timeout=ANSWER_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnknownFactError(f"{command[0]} did not answer within {ANSWER_S} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"])[-1]
        raise UnknownFactError(f"{' '.join(command)} failed: {last}") from None
    return done.stdout.strip()


def text(path: Path | str) -> str:
    """A small file's content."""
    return Path(path).read_text(encoding="utf-8", errors="replace").strip()


def attribute(path: Path, name: str) -> str:
    """An extended attribute of a file.

    Raises:
        UnknownFactError: if it has none of that name.
    """
    try:
        return os.getxattr(path, name).decode("utf-8", "replace").rstrip("\0")
    except OSError as error:
        raise UnknownFactError(f"it has no attribute {name} that this user may read: {error.strerror}") from None
