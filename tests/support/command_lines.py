"""Command lines in this process: what an interpreter of their own takes seconds to import is here already."""

from __future__ import annotations

import io
import os
import runpy
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest import mock


def run_module(module: str, *arguments: str, columns: int = 120) -> CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` as on a terminal; it shows the warnings that Python does by default."""
    output, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", [module, *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": str(columns)}),
        mock.patch.object(warnings, "formatwarning", warnings.formatwarning),
        mock.patch.object(warnings, "showwarning", _print_warning),
        warnings.catch_warnings(),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message="Cyclopts application invoked without tokens under unit-test")
        sys.modules.pop(f"{module}.__main__", None)  # Python warns where a test has imported it before
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int), code
    return CompletedProcess([module, *arguments], code, output.getvalue(), errors.getvalue())


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, line: int, *_: object, **__: object
) -> None:
    """Show a warning as Python does where no test records it."""
    print(warnings.formatwarning(message, category, filename, line), end="", file=sys.stderr)
