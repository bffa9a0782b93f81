"""What Slurm answers — where a job is, why it ended, what the cluster allows — and scancel. No submission.

`squeue` shows whether a job is still in the queue; `sacct`, where accounting runs, adds how it ended.
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import StudyError

_ANSWER_S = 30
"""How long Slurm may take to answer a question."""

_DEFAULT_LARGEST_ARRAY = 1000

# Reasons for which a pending job never starts by itself (squeue's %r).
NEVER_STARTS = frozenset({
    "AccountNotAllowed", "AssocMaxJobsLimit", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount",
    "InvalidQOS", "JobHeldAdmin", "JobHeldUser", "PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed",
    "launch_failed_requeued_held",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that Slurm still knows as pending or running."""

    state: str
    """As squeue has it: PENDING, RUNNING, COMPLETING, …"""
    reason: str
    nodes: str


def answers() -> bool:
    """Whether there is a Slurm here, and its controller answers."""
    if shutil.which("sbatch") is None:
        return False
    try:
        ask("sinfo", "--noheader", "--format=%R")
    except StudyError:
        return False
    return True


def ask(command: str, *arguments: str) -> str:
    """The standard output of one of Slurm's commands.

    Raises:
        StudyError: if it isn't there, fails, or takes too long.
    """
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=True, timeout=_ANSWER_S)
    except FileNotFoundError:
        raise StudyError(f"{command} isn't installed here: run this on a login node of the cluster") from None
    except subprocess.CalledProcessError as error:
        raise StudyError(f"{command} failed: {error.stderr.strip() or error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise StudyError(f"{command} did not answer within {_ANSWER_S} s") from None
    return done.stdout


def queue() -> Mapping[str, Queued]:
    """Every pending or running job of this user, in one call; array elements one by one.

    Raises:
        StudyError: if squeue doesn't answer.
    """
    text = ask("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%N")
    jobs = {}
    for line in text.splitlines():
        job_id, state, reason, nodes = line.strip().split("|", 3)
        jobs[job_id] = Queued(state, reason, nodes)
    return jobs


def endings(job_ids: Sequence[str]) -> Mapping[str, str]:
    """How jobs ended, from accounting: state, exit code and node. Empty where there is no accounting."""
    if not job_ids:
        return {}
    try:
        text = ask(
            "sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode,NodeList",
            "--jobs=" + ",".join(job_ids),
        )  # fmt: skip
    except StudyError:
        return {}
    jobs = {}
    for line in text.splitlines():
        job_id, state, exit_code, nodes = line.strip().split("|", 3)
        if not state.startswith(("PENDING", "RUNNING")):
            jobs[job_id] = f"{state}, exit code {exit_code}, on {nodes}"
    return jobs


def cancel(job_ids: Iterable[str]) -> None:
    """End these jobs and no others.

    Raises:
        StudyError: if scancel fails.
    """
    ask("scancel", *job_ids)


def largest_array() -> int:
    """The most jobs that one array may hold here."""
    try:
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    except StudyError:
        return _DEFAULT_LARGEST_ARRAY
    return max(1, int(match[1]) - 1) if match else _DEFAULT_LARGEST_ARRAY  # indices are below MaxArraySize
