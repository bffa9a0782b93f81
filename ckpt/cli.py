"""Runs the command lines of this package: a user's mistake ends with one message and exit code 2, not a traceback."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

from ckpt.errors import CheckpointWarning


def run(app: App, *mistakes: type[Exception]) -> None:
    """Run a command line and exit.

    Args:
        app: the command line; an integer that a command returns is the exit code.
        mistakes: the errors that are reported as one message, with exit code 2.
    """
    warnings.simplefilter("always", CheckpointWarning)
    warnings.formatwarning = _one_line(warnings.formatwarning)
    try:
        code = app(exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:  # cyclopts has printed the message
        sys.exit(2)
    except mistakes as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        sys.exit(0)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        print(printable(f"error: {unwritten(error, Path(error.filename or Path.cwd()))}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def unwritten(error: OSError, what: Path | str) -> str:
    """Say what could not be written, and what to do if its filesystem is full or a quota is used up."""
    if error.errno == errno.ENOSPC:
        return f"can't write {what}: its filesystem is full ({os.strerror(errno.ENOSPC)}); make room there"
    if error.errno == errno.EDQUOT:
        return f"can't write {what}: a quota is used up ({os.strerror(errno.EDQUOT)}); remove files, or ask for more"
    return f"can't write {what}: {error.strerror or error}"


def printable(text: str) -> str:
    """Remove control characters, which a terminal would obey, from a text; line breaks stay."""
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter)[0] != "C")


def _one_line(usual: Any) -> Any:
    """Return a formatter that shows this package's warnings without the line of code that they came from."""

    def shown(message: Warning | str, category: type[Warning], *where: Any) -> str:
        ours = issubclass(category, CheckpointWarning)
        return printable(f"warning: {message}\n") if ours else str(usual(message, category, *where))

    return shown
