"""How every command line of this package ends: a mistake is one message and exit code 2, never a traceback."""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from typing import Any

from cyclopts import App, CycloptsError

from ckpt.errors import CheckpointWarning


def run(app: App, *mistakes: type[Exception]) -> None:
    """Run a command line. A command's integer is the exit code; `mistakes` are told and end with 2."""
    warnings.simplefilter("always", CheckpointWarning)
    warnings.formatwarning = _one_line(warnings.formatwarning)
    try:
        code = app(exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:  # cyclopts has told it
        sys.exit(2)
    except mistakes as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def printable(text: str) -> str:
    """A text that may come from a file, without characters that a terminal would obey; lines stay."""
    return "".join(letter for letter in text if letter == "\n" or unicodedata.category(letter)[0] != "C")


def _one_line(usual: Any) -> Any:
    """Show a warning of ours without the line of code that it came from."""

    def shown(message: Warning | str, category: type[Warning], *where: Any) -> str:
        ours = issubclass(category, CheckpointWarning)
        return printable(f"warning: {message}\n") if ours else str(usual(message, category, *where))

    return shown
