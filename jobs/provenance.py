"""What machine, software and Slurm job this was. A fact that can't be had is `unknown` with the reason."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tensorstore", "numpy", "submitit", "h5py", "ml_dtypes", "ckpt-study")


def collect(submitted_version: str = "") -> dict[str, Any]:
    """The facts, as attributes for the log; `submitted_version` is the code's when the job was submitted."""
    return {
        "host": _or_unknown(platform.node),
        "kernel": _or_unknown(platform.release),
        "cpu": _or_unknown(_cpu_model),
        "cpus_usable": _or_unknown(lambda: len(os.sched_getaffinity(0))),
        "memory_bytes": _or_unknown(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "python": sys.version.split()[0],
        "packages": json.dumps({name: _or_unknown(partial(metadata.version, name)) for name in _PACKAGES}),
        "code_version": code_version(),
        "code_version_submitted": submitted_version or "unknown (run by hand)",
        "slurm": json.dumps({k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_")}),
        "process_id": os.getpid(),
    }


def version_changed(facts: dict[str, Any]) -> str:
    """How the code that ran differs from the code that was submitted; empty if it does not, or nobody knows."""
    submitted, ran = str(facts.get("code_version_submitted", "")), str(facts.get("code_version", ""))
    if submitted == ran or not submitted or submitted.startswith("unknown"):
        return ""
    return f"submitted with {submitted}, run with {ran}"


def code_version() -> str:
    """The package's version, the git commit it runs from, and whether the tree differs from it."""
    root = Path(__file__).resolve().parent.parent
    version = _or_unknown(lambda: metadata.version("ckpt-study"))
    if not (root / ".git").exists():
        return f"{version} (no git checkout)"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return f"{version} {git('rev-parse', 'HEAD')}{' dirty' if git('status', '--porcelain') else ''}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{version} unknown commit ({error})"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _or_unknown(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception as error:  # noqa: BLE001  # no missing fact may cost a measurement
        return f"unknown ({type(error).__name__}: {error})"
