"""Records what a program changes in a directory, with strace."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import StudyError
from jobs.faults.processes import ending, environment, last_line
from jobs.faults.recording import Recording
from jobs.faults.traced_calls import Reader

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,lseek,write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,"
    "ftruncate,truncate,fallocate,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,"
    "symlinkat,fsync,fdatasync,syncfs,fcntl,ioctl,clone,?clone3,?fork,?vfork,execve,?close_range"
)

_LONGEST_BYTES = 32 * 2**20
"""Of one write."""

_LONGEST_S = 600
"""Of a program that is recorded."""


def require_strace() -> None:
    """Make sure that there is an strace.

    Raises:
        StudyError: if there is none.
    """
    if shutil.which("strace") is None:
        raise StudyError(
            "strace is missing, with which the system calls of a save are recorded and made to fail: install the "
            "package strace (`apt install strace`, `dnf install strace`)"
        )


def record(root: Path, command: Sequence[str], trace: Path) -> Recording:
    """Run a command that changes a directory; returns what it and its child processes did.

    Args:
        root: the directory.
        command: ends with exit code 0.
        trace: a file for strace's output; it is overwritten.

    Raises:
        StudyError: if there is no strace, the command fails, or it uses calls that a recording can't have.
    """
    require_strace()
    recording = Recording()
    reader = Reader(root, recording)
    strace = ["strace", "-f", "-qq", "-y", "-xx", "-s", str(_LONGEST_BYTES), "--signal=none", "-e", f"trace={CALLS}"]
    try:
        done = subprocess.run(
            [*strace, "-o", str(trace), *command],
            env=environment(), capture_output=True, text=True, check=False, timeout=_LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StudyError(f"the program that is recorded has not ended in {_LONGEST_S} s") from None
    if done.returncode != 0:
        reason = last_line(done.stdout + done.stderr)
        raise StudyError(f"the program that is recorded ends with {ending(done.returncode)}: {reason}")
    reader.read(trace)
    return recording
