"""Processes on this machine, identified so that a later one with the same number is not mistaken for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

_GRACE_S = 20
"""How long a job that is cancelled may take to write its log and clean up."""


def created_unix_s(process_id: int) -> float:
    """When the process started, in seconds since 1970; 0 if there is none."""
    import psutil

    try:
        return float(psutil.Process(process_id).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def created_s(process_id: int) -> float:
    """When the process started, in seconds since the machine did; -1 if there is none, or no /proc shows it."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return -1.0
    return int(status.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def alive(process_id: int, unix_s: float, since_start_s: float) -> bool:
    """Whether the process with that number and these start times still runs.

    Args:
        process_id: the number.
        unix_s: as `created_unix_s`. The kernel's answer moves with the clock, when that is set.
        since_start_s: as `created_s`, which counts if it is known.
    """
    import psutil

    try:
        process = psutil.Process(process_id)
        is_same = created_s(process_id) == since_start_s or (
            since_start_s < 0 and abs(process.create_time() - unix_s) < 1
        )
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process_id: int) -> None:
    """End a process and its children: by SIGINT, so that a job cleans up, and by SIGKILL if it takes too long."""
    import psutil

    try:
        parent = psutil.Process(process_id)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    # The children first: submitit's controller ends when its tasks have ended.
    for process in family[:-1] or family:
        _send(process, signal.SIGINT)
    _, left = psutil.wait_procs(family, timeout=_GRACE_S)
    for process in left:
        _send(process, signal.SIGKILL)


def _send(process: Any, number: signal.Signals) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
