"""The state of submitted jobs on whatever runs them — waiting, running, gone — and how to end them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from jobs.cluster import processes, slurm, slurm_states
from jobs.cluster.slurm_states import GONE, QueueState
from jobs.cluster.submissions import Submission
from jobs.errors import StudyError


def of(sent: Sequence[Submission]) -> Mapping[str, QueueState]:
    """Where every job is now, by its latest submission; one question to Slurm for all of them."""
    latest = {submission.job_id: submission for submission in sent}
    on_slurm = [submission for submission in latest.values() if submission.cluster == "slurm"]
    return _on_slurm(on_slurm) | {
        submission.job_id: _here(submission) for submission in latest.values() if submission.cluster != "slurm"
    }


def cancel(sent: Sequence[Submission]) -> list[str]:
    """End the jobs that haven't ended; returns their ids.

    Raises:
        StudyError: if the cluster doesn't answer.
    """
    latest = {submission.job_id: submission for submission in sent}
    where = of(sent)
    unknown = [job.detail for job in where.values() if job.state == "unknown"]
    if unknown:
        raise StudyError(f"can't cancel: {unknown[0]}")
    ended = [job_id for job_id, job in where.items() if job.state != "gone"]
    # All of an array's jobs that haven't ended are this study's, and are to end.
    slurm.cancel(
        slurm_states.arrays(latest[job_id].scheduler_id for job_id in ended if latest[job_id].cluster == "slurm")
    )
    for job_id in ended:
        if latest[job_id].cluster != "slurm":
            processes.end(int(latest[job_id].scheduler_id))
    return ended


def _here(submission: Submission) -> QueueState:
    if submission.cluster == "local":
        number = int(submission.scheduler_id)
        if processes.alive(number, submission.process_created_unix_s, submission.process_created_s):
            return QueueState("running", f"process {number}")
    return GONE


def _on_slurm(sent: Sequence[Submission]) -> dict[str, QueueState]:
    if not sent:
        return {}
    try:
        queue = slurm.queue([job.scheduler_id for job in sent], {job.user_id for job in sent})
    except StudyError as error:
        return {submission.job_id: QueueState("unknown", str(error)) for submission in sent}
    states = {**_hidden([job for job in sent if job.scheduler_id not in queue]), **queue}
    return {submission.job_id: states.get(submission.scheduler_id, GONE) for submission in sent}


def _hidden(absent: Sequence[Submission]) -> dict[str, QueueState]:
    """Where other users' jobs are that aren't in the queue, by number, if that is because Slurm hides them here."""
    others = {job.scheduler_id: job.user_id for job in absent if job.user_id not in {-1, os.getuid()}}
    if not others or not slurm.hides_jobs_of_others():
        return {}
    states = {number: QueueState("unknown", _hidden_from_others(user_id)) for number, user_id in others.items()}
    return {**states, **slurm.by_accounting(list(others))}


def _hidden_from_others(user_id: int) -> str:
    name = slurm.user_name(user_id) or f"user {user_id}"
    return f"Slurm hides {name}'s jobs from other users here; {name} can see their states by `status`"
