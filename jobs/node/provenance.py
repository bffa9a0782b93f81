"""The machine, software and Slurm job of a measurement; an unavailable fact is `unknown` with the reason."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.node.known import UnknownFactError, ask, known, text

_PACKAGES = ("torch", "transformers", "tensorstore", "numpy", "submitit", "h5py", "ml_dtypes", "ckpt-study")


def of_machine(submitted_version: str, resolved_study: str) -> dict[str, Any]:
    """The facts about host, software and job; `submitted_version` is the code's when the job was submitted."""
    return {
        "host": known(platform.node),
        "kernel": known(platform.release),
        "cpu": known(_cpu_model),
        "cpus_usable": known(lambda: len(os.sched_getaffinity(0))),
        "cpu_governor": known(lambda: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_bytes": known(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "cgroup_limits": known(_cgroup_limits),
        "clock_source": known(lambda: text("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        "mounts": known(_mounts),
        "modules": os.environ.get("LOADEDMODULES") or "unknown (LOADEDMODULES is not set: no module system here)",
        "python": sys.version.split()[0],
        "packages": json.dumps({name: known(partial(metadata.version, name)) for name in _PACKAGES}),
        "code_version": code_version(),
        "code_version_submitted": submitted_version or "unknown (run by hand)",
        "study": resolved_study,
        "slurm": json.dumps({k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_")}),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST") or "unknown (not in a Slurm job)",
        "process_id": os.getpid(),
    }


def dirty_bytes() -> Any:
    """The bytes in this machine's memory that are still to be written to storage, by any process."""

    def read() -> int:
        kilobytes = dict(re.findall(r"^(Dirty|Writeback):\s+(\d+) kB$", text("/proc/meminfo"), re.MULTILINE))
        return 1024 * (int(kilobytes["Dirty"]) + int(kilobytes["Writeback"]))

    return known(read)


class Steal:
    """The fraction of this machine's CPU time that a hypervisor gave to others, since this was made."""

    def __init__(self) -> None:
        self._before = known(_cpu_times)

    def share(self) -> Any:
        """From 0 to 1; or `unknown` with the reason."""

        def read() -> float:
            times = {name: after - self._before[name] for name, after in _cpu_times().items()}
            return float(times["steal"] / max(0.01, sum(times.values())))

        return known(read)


def _cpu_times() -> dict[str, float]:
    """The seconds of CPU time by kind; a guest's is in `user` and `nice` already."""
    import psutil

    times = psutil.cpu_times()._asdict()
    return {name: times[name] for name in ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")}


def code_version() -> str:
    """The package's version, the git commit it runs from, and whether the tree differs from it."""
    root = Path(__file__).resolve().parent.parent.parent
    version = known(lambda: metadata.version("ckpt-study"))
    if not (root / ".git").exists():
        return f"{version} (no git checkout)"
    try:
        # Git refuses another user's checkout unless told that it is trusted, and this one's Python runs already.
        git = ("git", "-c", f"safe.directory={root}", "-C", str(root))
        commit = ask(*git, "rev-parse", "HEAD")
        return f"{version} {commit}{' dirty' if ask(*git, 'status', '--porcelain') else ''}"
    except UnknownFactError as error:
        return f"{version} unknown commit ({error})"


def _cpu_model() -> str:
    match = re.search(r"^model name\s*: (.*)$", text("/proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _cgroup_limits() -> str:
    """The limits on CPU and memory of the control group that this process is in."""
    groups = dict(line.split(":", 2)[1:] for line in text("/proc/self/cgroup").splitlines())
    root = Path("/sys/fs/cgroup")
    candidates = {
        "cpu.max": root / groups.get("", "/").lstrip("/") / "cpu.max",
        "memory.max": root / groups.get("", "/").lstrip("/") / "memory.max",
        "memory.limit_in_bytes": root / "memory" / groups.get("memory", "/").lstrip("/") / "memory.limit_in_bytes",
    }
    limits = {name: path.read_text().strip() for name, path in candidates.items() if path.is_file()}
    if not limits:
        raise UnknownFactError("no limits are visible below /sys/fs/cgroup")
    return json.dumps(limits)


def _mounts() -> str:
    """Every mount of a real filesystem, as findmnt has it."""
    mounted = json.loads(ask("findmnt", "--json", "--list", "--real", "--output", "TARGET,SOURCE,FSTYPE,OPTIONS"))
    return json.dumps(mounted["filesystems"])
