"""What Slurm answers — where a job is, why it ended, what the cluster allows — and scancel. No submission.

`squeue` shows whether a job is still in the queue; `sacct`, where accounting runs, adds how it ended.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from jobs.cluster import slurm_states
from jobs.cluster.slurm_states import Ending, QueueState
from jobs.errors import StudyError

T = TypeVar("T")

_ANSWER_S = 30
"""How long Slurm may take to answer a question."""

_DEFAULT_LARGEST_ARRAY = 1000

_MOST_NUMBERS = 1000
"""In one question: a line of arguments has its limits."""

_CANCEL_S = 5.0
"""How long a controller that limits requests may take for one job that isn't part of an array."""


def ask(command: str, *arguments: str, timeout_s: float = _ANSWER_S) -> str:
    """The standard output of one of Slurm's commands; times in it are in seconds since 1970, lists of ids complete.

    Raises:
        StudyError: if it isn't there, fails, or takes too long.
    """
    done = _done(command, *arguments, timeout_s=timeout_s)
    if done.returncode:
        raise StudyError(f"{command} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _done(command: str, *arguments: str, timeout_s: float = _ANSWER_S) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=False, timeout=timeout_s,
            env=os.environ | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
        )  # fmt: skip
    except FileNotFoundError:
        raise StudyError(f"{command} isn't installed here: run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise StudyError(f"{command} did not answer within {timeout_s:.0f} s") from None


def queue(numbers: Sequence[str], users: Collection[int] = ()) -> Mapping[str, QueueState]:
    """Where these jobs are, whoever submitted them; array elements one by one. Without those that Slurm has forgotten.

    Args:
        numbers: of the jobs.
        users: who submitted them; -1 for unknown ones.

    Raises:
        StudyError: if squeue doesn't answer.
    """
    jobs: dict[str, QueueState] = {}
    # For a single array, or the jobs of a single user, the controller doesn't list all the others.
    several = len(slurm_states.arrays(numbers)) > 1
    known = several and users and all(map(user_name, users))  # of another one, squeue prints no jobs and doesn't fail
    of_users = [f"--user={','.join(map(str, users))}"] if known else []
    for some in _chunks(slurm_states.arrays(numbers)):
        try:
            text = ask(
                "squeue", "--local", "--noheader", "--array", "--states=all", f"--jobs={','.join(some)}",
                f"--format={slurm_states.QUEUE_FORMAT}", *of_users,
            )  # fmt: skip
        except StudyError as error:
            if "Invalid job id" not in str(error):  # how squeue says that none of them is left
                raise
        else:
            jobs |= slurm_states.in_queue(text)
    return jobs


def user_name(user_id: int) -> str:
    """A user's name; empty if it isn't known here."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except (KeyError, OverflowError, ValueError):
        return ""


def scripts() -> Mapping[str, str]:
    """The names of the scripts that this user's jobs in the queue were submitted with, by the arrays' numbers.

    Raises:
        StudyError: if squeue doesn't answer.
    """
    text = ask("squeue", "--local", "--noheader", f"--user={os.getuid()}", "--format=%F|%o")
    rows = (line.strip().split("|", 1) for line in text.splitlines() if "|" in line)
    return {number: Path(command).name for number, command in rows}


def hides_jobs_of_others() -> bool:
    """Whether Slurm shows a user without privileges the jobs of nobody else."""
    try:
        hidden = settings("config").get("PrivateData", "")
    except StudyError:
        return False
    return os.geteuid() != 0 and "jobs" in hidden.split(",")


def by_accounting(numbers: Sequence[str]) -> Mapping[str, QueueState]:
    """Where jobs are that the queue doesn't show; without those that accounting doesn't show either."""
    return _accounted(numbers, slurm_states.by_accounting)


def endings(numbers: Sequence[str]) -> Mapping[str, Ending]:
    """How jobs ended, from accounting. Empty where there is no accounting."""
    return _accounted(numbers, slurm_states.endings)


def _accounted(numbers: Sequence[str], read: Callable[[str], Mapping[str, T]]) -> Mapping[str, T]:
    jobs = dict(_answers(numbers, read))
    # Elements that never started are found by their array's number alone.
    never_started = slurm_states.arrays(number for number in numbers if "_" in number and number not in jobs)
    jobs = dict(_answers(never_started, read)) | jobs
    return {number: jobs[number] for number in numbers if number in jobs}


def _answers(numbers: Sequence[str], read: Callable[[str], Mapping[str, T]]) -> Iterator[tuple[str, T]]:
    for some in _chunks(numbers):
        try:
            text = ask(
                "sacct", "--allocations", "--noheader", "--parsable2", f"--format={slurm_states.ENDINGS_FORMAT}",
                f"--jobs={','.join(some)}",
            )  # fmt: skip
        except StudyError:
            return
        yield from read(text).items()


def cancel(numbers: Sequence[str]) -> None:
    """End these arrays and single jobs: one request for each, however many elements an array has.

    Raises:
        StudyError: if scancel fails.
    """
    for some in _chunks(numbers):
        ask("scancel", *some, timeout_s=_ANSWER_S + _CANCEL_S * len(some))


def _chunks(numbers: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(numbers), _MOST_NUMBERS):
        yield numbers[start : start + _MOST_NUMBERS]


def largest_array() -> int:
    """The most jobs that one array may hold here."""
    try:
        limit = settings("config").get("MaxArraySize", "")
    except StudyError:
        return _DEFAULT_LARGEST_ARRAY
    return max(1, int(limit) - 1) if limit.isdigit() else _DEFAULT_LARGEST_ARRAY  # indices are below MaxArraySize


def settings(*what: str) -> Mapping[str, str]:
    """Names and values as `scontrol show` prints them, in one line or in many; of several entries, the first's.

    Raises:
        StudyError: if the controller doesn't answer.
    """
    done = _done("scontrol", "show", *what)
    values: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)[ \t]*=[ \t]*(\S*)", done.stdout):
        values.setdefault(name, value)
    if not values:  # a controller that limits requests may refuse the last one, a ping, after all of them
        raise StudyError(f"scontrol failed: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    return values
