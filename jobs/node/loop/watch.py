"""What a block of the loop took of its node beside time: memory, threads, descriptors, CPU; helpers included."""

from __future__ import annotations

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


class Watch:
    """Watches the process, and all that it started, over a block; a look takes some microseconds for each process."""

    def __init__(self) -> None:
        self._processes = (os.getpid(), *_descendants(os.getpid()))
        for process in self._processes:
            with suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the high-water mark
        self._threads = self._descriptors = 0
        self._cpu_s, self._helper_cpu_s = time.process_time(), self._helpers_cpu_s()

    def look(self) -> None:
        """Count threads and descriptors now; between two steps."""
        self._processes = (os.getpid(), *_descendants(os.getpid()))
        self._threads = max(self._threads, sum(_entries(process, "task") for process in self._processes))
        self._descriptors = max(self._descriptors, sum(_entries(process, "fd") for process in self._processes))

    def taken(self) -> Taken:
        """What was taken since this watch began."""
        self.look()
        return Taken(
            peak_memory_bytes=self._memory("VmHWM"),
            end_memory_bytes=self._memory("VmRSS"),
            threads=self._threads or UNKNOWN,
            descriptors=self._descriptors or UNKNOWN,
            cpu_s=time.process_time() - self._cpu_s,
            helper_cpu_s=self._helpers_cpu_s() - self._helper_cpu_s,
        )

    def _memory(self, mark: str) -> int:
        """Resident memory of all, in bytes; what helpers share with the process is the process's."""
        own, *helpers = (_status(process) for process in self._processes)
        if mark not in own:
            return UNKNOWN
        return own[mark] + sum(max(0, helper.get(mark, 0) - helper.get("RssShmem", 0)) for helper in helpers)

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
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
