"""System calls that fail in a child process, as the kernel or a filesystem would let them fail; strace does it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

LACKS = {
    "huge pages": {"madvise": "error=EINVAL"},
    "statistics of the page cache": {"cachestat,mincore": "error=ENOSYS"},
    "preallocation": {"fallocate": "error=EOPNOTSUPP"},
    "writeback on request": {"sync_file_range": "error=ENOSYS"},
    "advice": {"fadvise64": "error=ENOSYS"},
    "the alignment of direct I/O": {"statx": "error=ENOSYS"},
}
"""What a kernel or a filesystem may lack, and how it answers then."""


_LONGEST_S = 100
"""A forked child lacks its parent's threads; one that waits for them is ended, and its outcome is empty."""


def require_strace() -> None:
    """Skip a test where there is no strace; fail it where everything is required."""
    if shutil.which("strace") is None:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("strace is missing: install strace")
        pytest.skip("strace is missing, so that no call can be made to fail: install strace")


def in_a_traced_child(work: Callable[[], object], faults: dict[str, str], paths: list[Path], log: Path) -> str:
    """What comes of the work where these system calls fail so, on these paths or on all: `done`, or the error."""
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # JAX, where another test imported it
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has a handler of its own
        signal.alarm(_LONGEST_S)
        torch.set_num_threads(torch.get_num_threads())  # a fork has no pool of threads, and faults may forbid a new one
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            work()
            outcome = "done"
        except BaseException as error:  # noqa: BLE001  # the parent sees it
            outcome = f"{type(error).__name__}: {error}"
        os.write(writing, outcome.encode()[:4000])
        os._exit(0)
    os.close(writing)
    os.waitpid(child, os.WUNTRACED)
    known = {",".join(f"?{call}" for call in calls.split(",")): fault for calls, fault in faults.items()}
    command = ["strace", "-f", "-p", str(child), "-o", str(log), "-e", f"trace={','.join(known)}"]
    for calls, fault in known.items():
        command += ["-e", f"inject={calls}:{fault}"]
    for path in paths:
        command += ["-P", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        while "attached" not in tracer.stderr.readline():
            assert tracer.poll() is None, "strace can't attach to a child of this process"
        os.kill(child, signal.SIGCONT)
        with open(reading, "rb") as pipe:  # noqa: PTH123  # a descriptor
            outcome = pipe.read().decode()
        os.waitpid(child, 0)
    return outcome
