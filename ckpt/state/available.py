"""How much more memory a process can have: what the machine has, and what control groups leave of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")

_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Of a control group, and what it uses: version 2, version 1."""

_PAGE_CACHE = ("inactive_file", "active_file")
"""What the kernel gives back before it kills a process."""


def available_bytes() -> int:
    """The memory that a process can have without swapping, and without being killed, as the kernel estimates it."""
    return min([_of_machine(), *_left_by_groups()])


def _of_machine() -> int:
    (kib,) = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(kib) * 1024


def _left_by_groups() -> Iterator[int]:
    """What is left in every control group that this process is in; nothing where none limits the memory."""
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        for controllers, path in (line.split(":", 2)[1:] for line in lines):
            if not controllers or "memory" in controllers.split(","):
                root = _GROUPS / ("memory" if controllers else "")
                group = root / path.lstrip("/")
                if not group.is_dir():  # a container sees its own group as the root
                    group = root
                yield from map(_left_by, [group, *(above for above in group.parents if above.is_relative_to(root))])


def _left_by(group: Path) -> int:
    for limit, usage in _LIMITS:
        with suppress(OSError, ValueError):  # this group has no such file, or its limit is "max"
            limit_bytes, usage_bytes = (int((group / name).read_text()) for name in (limit, usage))
            stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
            cache_bytes = sum(int(stat.get(f"total_{name}") or stat.get(name, "0")) for name in _PAGE_CACHE)
            return max(0, limit_bytes - usage_bytes + cache_bytes)
    return 2**63
