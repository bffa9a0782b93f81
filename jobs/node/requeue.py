"""A preempted job that has tidied up goes back to the queue; Slurm up to 23.11 takes its exit for a failure."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from jobs.node.recorder import journal

_ANSWER_S = 10
"""Of the grace time, which may be short; nothing is lost if Slurm doesn't answer, but the job has to be sent again."""


def requeue_if_preempted(job_id: str, environment: Mapping[str, str]) -> bool:
    """Requeue this Slurm job if it is being preempted, and not if it was cancelled; returns whether it was requeued.

    Slurm notes when it began to preempt a job that still runs. A cancelled one doesn't run any more, but is completing.
    """
    number = _number(environment)
    if not number:
        return False
    try:
        state = _scontrol("--oneliner", "show", "job", number)
        if not re.search(r"\bJobState=RUNNING\b", state) or not re.search(r"\bPreemptTime=\d", state):
            return False
        _scontrol("requeue", number)
    except (OSError, subprocess.SubprocessError) as error:
        words = str(getattr(error, "stderr", "") or error).strip()
        journal(job_id, f"can't ask Slurm to requeue this job: {words}")
        return False
    journal(job_id, "preempted: back in the queue")
    return True


def _number(environment: Mapping[str, str]) -> str:
    """The job's number. In an array, the element's: an array's number may be that of one of its elements too."""
    array, element = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else environment.get("SLURM_JOB_ID", "")


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ANSWER_S).stdout
