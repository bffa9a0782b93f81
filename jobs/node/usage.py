"""What an operation costs in addition to time: CPU, memory, I/O, page faults. Measured outside its clock."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = -1


@dataclass(slots=True)
class ResourceUsage:
    """What this process used, from just before an operation to just after it; NaN and -1 where it isn't known."""

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
def measure_usage() -> Iterator[ResourceUsage]:
    """Measure what the body uses; the result is filled in when it has ended, however it ends."""
    usage = ResourceUsage()
    io_before = _io()
    resident_before = _status_bytes("VmRSS")
    resettable = _reset_peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        yield usage
    finally:
        after = resource.getrusage(resource.RUSAGE_SELF)
        usage.user_s = after.ru_utime - before.ru_utime
        usage.system_s = after.ru_stime - before.ru_stime
        usage.cpu_s = usage.user_s + usage.system_s
        usage.minor_faults = after.ru_minflt - before.ru_minflt
        usage.major_faults = after.ru_majflt - before.ru_majflt
        if resettable:
            usage.peak_rss_bytes = _status_bytes("VmHWM")
            usage.peak_extra_bytes = max(0, usage.peak_rss_bytes - resident_before)
        io = _io()
        if io and io_before:
            usage.device_read_bytes = io.read_bytes - io_before.read_bytes
            usage.device_write_bytes = io.write_bytes - io_before.write_bytes
            usage.read_calls = io.read_count - io_before.read_count
            usage.write_calls = io.write_count - io_before.write_count


def fetched_bytes() -> int | None:
    """The bytes that this process has had fetched from storage so far; None where the kernel doesn't count them."""
    io = _io()
    return None if io is None else int(io.read_bytes)


def _io() -> Any:
    """This process's I/O counters; None where the kernel doesn't keep them."""
    import psutil

    try:
        return psutil.Process().io_counters()
    except (psutil.Error, OSError, RuntimeError, NotImplementedError):
        return None


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
