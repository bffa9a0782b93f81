"""What Slurm answers — where a job is, why it ended, what the cluster allows — and scancel. No submission.

`squeue` shows whether a job is still in the queue; `sacct`, where accounting runs, adds how it ended.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from jobs.cluster import slurm_states
from jobs.cluster.slurm_states import Ending, QueueState
from jobs.errors import StudyError

_ANSWER_S = 30
"""How long Slurm may take to answer a question."""

_DEFAULT_LARGEST_ARRAY = 1000

_MOST_NUMBERS = 1000
"""In one question: a line of arguments has its limits."""

_CANCEL_S = 1.0
"""How long a controller that limits requests may take for one job that isn't part of an array."""


def ask(command: str, *arguments: str, timeout_s: float = _ANSWER_S) -> str:
    """The standard output of one of Slurm's commands; times in it are in seconds since 1970, lists of ids complete.

    Raises:
        StudyError: if it isn't there, fails, or takes too long.
    """
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=True, timeout=timeout_s,
            env=os.environ | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
        )  # fmt: skip
    except FileNotFoundError:
        raise StudyError(f"{command} isn't installed here: run this on a login node of the cluster") from None
    except subprocess.CalledProcessError as error:
        raise StudyError(f"{command} failed: {error.stderr.strip() or error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise StudyError(f"{command} did not answer within {timeout_s:.0f} s") from None
    return done.stdout


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
    of_users = [f"--user={','.join(map(str, users))}"] if several and users and all(map(_has_name, users)) else []
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


def _has_name(user_id: int) -> bool:
    """Whether squeue takes that user: of one that it can't look up, it prints no jobs and doesn't fail."""
    try:
        return bool(pwd.getpwuid(user_id))
    except (KeyError, OverflowError, ValueError):
        return False


def scripts() -> Mapping[str, str]:
    """The names of the scripts that this user's jobs in the queue were submitted with, by the arrays' numbers.

    Raises:
        StudyError: if squeue doesn't answer.
    """
    text = ask("squeue", "--local", "--noheader", f"--user={os.getuid()}", "--format=%F|%o")
    rows = (line.strip().split("|", 1) for line in text.splitlines() if "|" in line)
    return {number: Path(command).name for number, command in rows}


def endings(numbers: Sequence[str]) -> Mapping[str, Ending]:
    """How jobs ended, from accounting. Empty where there is no accounting."""
    jobs = dict(_endings(numbers))
    # Elements that never started are found by their array's number alone.
    never_started = slurm_states.arrays(number for number in numbers if "_" in number and number not in jobs)
    jobs = dict(_endings(never_started)) | jobs
    return {number: jobs[number] for number in numbers if number in jobs}


def _endings(numbers: Sequence[str]) -> Iterator[tuple[str, Ending]]:
    for some in _chunks(numbers):
        try:
            text = ask(
                "sacct", "--allocations", "--noheader", "--parsable2", f"--format={slurm_states.ENDINGS_FORMAT}",
                f"--jobs={','.join(some)}",
            )  # fmt: skip
        except StudyError:
            return
        yield from slurm_states.endings(text).items()


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
    values: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)[ \t]*=[ \t]*(\S*)", ask("scontrol", "show", *what)):
        values.setdefault(name, value)
    return values
