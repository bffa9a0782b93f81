"""Runs `python -m analysis` on what a study has left."""

from __future__ import annotations

import subprocess
import sys

from ckpt.cli import printable
from jobs.paths import StudyPaths


def analyse(command: str, paths: StudyPaths) -> int:
    """Run a command of `python -m analysis` on a study's results; returns its exit code.

    In a process of its own: an error of the analysis can't break a run, and this one needs none of its libraries.
    """
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "analysis", command, str(paths.root)], check=False).returncode
    if code not in {0, 1 if command == "selftest" else 0}:
        message = f"the results are kept, but `python -m analysis {command} {paths.root}` failed (exit code {code})"
        print(printable(f"error: {message}"), file=sys.stderr)
    return code
