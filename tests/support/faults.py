"""System calls that fail in a child process, as the kernel or a filesystem would let them fail; strace does it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.faults.children import Child
from jobs.faults.injecting import injected

LACKS = {
    "huge pages": {"madvise": "error=EINVAL"},
    "statistics of the page cache": {"cachestat,mincore": "error=ENOSYS"},
    "preallocation": {"fallocate": "error=EOPNOTSUPP"},
    "writeback on request": {"sync_file_range": "error=ENOSYS"},
    "advice": {"fadvise64": "error=ENOSYS"},
    "the alignment of direct I/O": {"statx": "error=ENOSYS"},
}
"""What a kernel or a filesystem may lack, and how it answers then."""


def require_strace() -> None:
    """Skip a test where there is no strace; fail it where everything is required."""
    if shutil.which("strace") is None:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("strace is missing: install strace")
        pytest.skip("strace is missing, so that no call can be made to fail: install strace")


def in_a_traced_child(work: Callable[[], object], faults: dict[str, str], paths: list[Path], log: Path) -> str:
    """What comes of the work where these system calls fail so, on these paths or on all: `done`, or the error."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(torch.get_num_threads())  # a fork has no pool of threads, and faults may forbid a new one
        return work

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # JAX, where another test imported it
        child = Child(prepare)
    with injected(child.pid, faults, log, paths):
        child.go_on()
        ending = child.ending()
    return "done" if ending.returned else ending.error
