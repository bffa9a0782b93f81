"""A control group whose processes may have little memory: the kernel kills one that takes more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a group below this process's, and remove it; the test is skipped where none can be made.

    The group is charged for memory that a process takes after it joined, and for its pages in the page cache.

    Yields:
        The file to which a process writes its number to join.
    """
    try:
        group, limits = _new_group()
    except OSError as error:
        reason = f"no memory cgroup can be made here, as root of a cgroup v1 or of a delegated cgroup v2 can: {error}"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        for name, value in limits.items():
            if (group / name).exists():  # of swap: not where the kernel doesn't count it
                (group / name).write_text(str(limit_bytes if value is None else value))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def _new_group() -> tuple[Path, dict[str, int | None]]:
    """Return a new group, and what limits its memory: a value, or None for the limit."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    groups = dict(line.split(":", 2)[1:] for line in lines)
    name = f"ckpt-test-{os.getpid()}"
    if "memory" in groups:
        group = _ROOT / "memory" / groups["memory"].lstrip("/") / name
        limits: dict[str, int | None] = {"memory.limit_in_bytes": None, "memory.memsw.limit_in_bytes": None}
    else:
        own = _ROOT / groups[""].lstrip("/")
        # A group with processes can't limit the memory of groups below it, unless it is the root.
        above = own if own == _ROOT else own.parent
        (above / "cgroup.subtree_control").write_text("+memory")
        group = above / name
        limits = {"memory.max": None, "memory.swap.max": 0}
    group.mkdir()
    return group, limits
