"""What an operation costs beside time: CPU, memory, I/O, page faults. Collected outside its clock."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = -1


@dataclass(slots=True)
class Cost:
    """Of this process, from just before an operation to just after it; NaN and -1 where it can't be known."""

    cpu_s: float = math.nan
    user_s: float = math.nan
    system_s: float = math.nan
    peak_rss_bytes: int = UNKNOWN
    """The kernel's high-water mark of resident memory, reset before."""
    peak_extra_bytes: int = UNKNOWN
    """How far that mark lies above what was resident before."""
    device_read_bytes: int = UNKNOWN
    device_write_bytes: int = UNKNOWN
    read_calls: int = UNKNOWN
    write_calls: int = UNKNOWN
    minor_faults: int = UNKNOWN
    major_faults: int = UNKNOWN


@contextmanager
def collect() -> Iterator[Cost]:
    """Collect what the work inside costs; the result is filled in when it has ended, however it ends."""
    cost = Cost()
    io_before = _io()
    resident_before = _status_bytes("VmRSS")
    resettable = _reset_peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        yield cost
    finally:
        after = resource.getrusage(resource.RUSAGE_SELF)
        cost.user_s = after.ru_utime - before.ru_utime
        cost.system_s = after.ru_stime - before.ru_stime
        cost.cpu_s = cost.user_s + cost.system_s
        cost.minor_faults = after.ru_minflt - before.ru_minflt
        cost.major_faults = after.ru_majflt - before.ru_majflt
        if resettable:
            cost.peak_rss_bytes = _status_bytes("VmHWM")
            cost.peak_extra_bytes = max(0, cost.peak_rss_bytes - resident_before)
        io = _io()
        if io and io_before:
            cost.device_read_bytes = io["read_bytes"] - io_before["read_bytes"]
            cost.device_write_bytes = io["write_bytes"] - io_before["write_bytes"]
            cost.read_calls = io["syscr"] - io_before["syscr"]
            cost.write_calls = io["syscw"] - io_before["syscw"]


def _io() -> dict[str, int]:
    """This process's /proc/self/io; empty where the kernel doesn't keep it."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the high-water mark
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return UNKNOWN
