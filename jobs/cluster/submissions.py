"""Which job went out when, to which cluster, under which number: the list in a study's directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ckpt.disk.durable import write_atomically
from jobs.cluster.processes import created_s, created_unix_s
from jobs.errors import StudyError
from jobs.paths import StudyPaths


@dataclass(frozen=True, slots=True)
class Submission:
    """That a job went out: when, to which cluster, under which number."""

    job_id: str
    cluster: str
    scheduler_id: str
    """Slurm's job id (`17_3` in an array), or a process id."""
    process_created_unix_s: float
    """When that process started, since process ids are used again; 0 for Slurm."""
    submitted_utc: str
    code_version: str
    user_id: int = -1
    """Of who submitted it; -1 if that was not noted."""
    process_created_s: float = -1.0
    """When that process started, since the machine did: no clock that is set changes it; -1 if that was not noted."""


def submissions(paths: StudyPaths) -> list[Submission]:
    """Every submission of a study so far, oldest first."""
    if not paths.submissions_json.exists():
        return []
    try:
        return [_submission(facts) for facts in json.loads(paths.submissions_json.read_text())]
    except (ValueError, TypeError, RecursionError) as error:
        raise StudyError(
            f"{paths.submissions_json} is damaged ({error}): move it away; the jobs' logs show what is done"
        ) from error


def _submission(facts: dict[str, Any]) -> Submission:
    """A submission as a file describes it; its number becomes part of file names, and an argument of scancel."""
    sent = Submission(**facts)
    if not re.fullmatch(r"(DEBUG_)?\d+(_\d+)?", sent.scheduler_id):
        raise ValueError(f"the scheduler's number of a job is {sent.scheduler_id!r:.80}")
    if sent.cluster == "local" and not sent.scheduler_id.isdigit():
        raise ValueError(f"the process of a job is {sent.scheduler_id!r:.80}")
    created = sent.process_created_unix_s, sent.process_created_s
    if not isinstance(sent.job_id, str) or not all(isinstance(time, float | int) for time in created):
        raise TypeError(f"the job {sent.job_id!r:.80} started at {created!r:.80}")
    if type(sent.user_id) is not int:
        raise TypeError(f"the user who submitted a job is {sent.user_id!r:.80}")
    return sent


def record(paths: StudyPaths, cluster: str, sent: Sequence[tuple[str, str]], version: str) -> None:
    """Add jobs that have just gone out to the list; several processes may do that at once.

    Args:
        paths: of the study.
        cluster: that they went to.
        sent: the jobs' ids, and their numbers there.
        version: of the code that submitted them.
    """
    local = cluster == "local"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    new = []
    for job_id, number in sent:
        unix_s, since_start_s = (created_unix_s(int(number)), created_s(int(number))) if local else (0.0, -1.0)
        new.append(Submission(job_id, cluster, number, unix_s, now, version, os.getuid(), since_start_s))
    with _locked(paths):
        everything = [asdict(submission) for submission in [*submissions(paths), *new]]
        write_atomically(paths.submissions_json, json.dumps(everything, indent=1) + "\n", sync=False)


@contextlib.contextmanager
def _locked(paths: StudyPaths) -> Iterator[None]:
    """Keep other processes from changing the list meanwhile."""
    with paths.submissions_lock.open("w") as file:
        with contextlib.suppress(OSError):  # some shared filesystems are mounted without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
