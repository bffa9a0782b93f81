"""What a block of the loop took of its node beside time: memory, threads, descriptors, CPU; helpers included."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.node.usage import UNKNOWN


@dataclass(frozen=True, slots=True)
class Taken:
    """What a block took."""

    peak_memory_bytes: int
    end_memory_bytes: int
    threads: int
    descriptors: int
    cpu_s: float
    helper_cpu_s: float


_LARGEST_SHARE = 0.005
"""Of the time that looks may take."""


class Watch:
    """Watches the process, and all that it started, over a block."""

    def __init__(self) -> None:
        self._processes = (os.getpid(), *_descendants(os.getpid()))
        for process in self._processes:
            with suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the high-water mark
        self._threads = self._descriptors = 0
        self._shared_bytes = 0
        self._helpers_own_bytes: dict[int, int] = {}
        self._next_s = -math.inf
        self._cpu_s, self._helper_cpu_s = time.process_time(), self._helpers_cpu_s()

    def look(self) -> None:
        """Count threads, descriptors and helpers' memory, between two steps; seldom, where that takes long."""
        start_s = time.perf_counter()
        if start_s < self._next_s:
            return
        self._count()
        end_s = time.perf_counter()
        self._next_s = end_s + (end_s - start_s) / _LARGEST_SHARE

    def _count(self) -> None:
        self._processes = (os.getpid(), *_descendants(os.getpid()))
        self._threads = max(self._threads, sum(_entries(process, "task") for process in self._processes))
        self._descriptors = max(self._descriptors, sum(_entries(process, "fd") for process in self._processes))
        self._shared_bytes = max(self._shared_bytes, _status(os.getpid()).get("RssShmem", 0))
        for process in self._processes[1:]:
            most_bytes = self._helpers_own_bytes.get(process, 0)
            self._helpers_own_bytes[process] = max(most_bytes, _own_bytes(_status(process)))

    def taken(self) -> Taken:
        """What was taken since this watch began."""
        self._count()
        status = _status(os.getpid())
        known = "VmHWM" in status and "VmRSS" in status
        peak_bytes = status.get("VmHWM", 0) + sum(map(self._peak_bytes, self._helpers_own_bytes))
        end_bytes = status.get("VmRSS", 0) + sum(_own_bytes(_status(process)) for process in self._processes[1:])
        return Taken(
            peak_memory_bytes=peak_bytes if known else UNKNOWN,
            end_memory_bytes=end_bytes if known else UNKNOWN,
            threads=self._threads or UNKNOWN,
            descriptors=self._descriptors or UNKNOWN,
            cpu_s=time.process_time() - self._cpu_s,
            helper_cpu_s=max(0.0, self._helpers_cpu_s() - self._helper_cpu_s),
        )

    def _peak_bytes(self, process: int) -> int:
        """The most memory of a helper that it doesn't share with the process, which may share all that can be shared.

        The kernel's high-water mark counts both, and looks may miss a short save.
        """
        own_bytes = _status(process).get("VmHWM", 0) - self._shared_bytes
        return max(self._helpers_own_bytes[process], own_bytes)

    def _helpers_cpu_s(self) -> float:
        """The CPU time of processes that were started and have ended, and of those that run."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(_cpu_s(process) for process in self._processes[1:])


def _descendants(process: int) -> Iterable[int]:
    """The processes that a process started, and those that they started."""
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _own_bytes(status: dict[str, int]) -> int:
    """What a process has resident and doesn't share."""
    return max(0, status.get("VmRSS", 0) - status.get("RssShmem", 0))


def _entries(process: int, directory: str) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/{directory}"))  # noqa: PTH208  # a count, often
    except OSError:  # it has ended
        return 0


def _status(process: int) -> dict[str, int]:
    """The lines of a process's status that are sizes, in bytes."""
    with suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}
    return {}


def _cpu_s(process: int) -> float:
    """The CPU time of a process, and of those that it started and that have ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0
