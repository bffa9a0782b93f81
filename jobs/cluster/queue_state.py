"""Where a submitted job is now — waiting, running, gone — whatever took it; and how to end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.cluster import processes, slurm
from jobs.cluster.submissions import Submission
from jobs.errors import StudyError


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What a cluster says of a job, and why, or on which node.

    `stuck` waits for what can't come by itself; `unknown` is a cluster that doesn't answer.
    """

    state: Literal["waiting", "running", "gone", "stuck", "unknown"]
    detail: str = ""


def of(sent: Sequence[Submission]) -> Mapping[str, Whereabouts]:
    """Where each job is now, by its latest submission; one question to Slurm for all of them."""
    latest = {each.job_id: each for each in sent}
    on_slurm = [each for each in latest.values() if each.cluster == "slurm"]
    return _on_slurm(on_slurm) | {each.job_id: _here(each) for each in latest.values() if each.cluster != "slurm"}


def cancel(sent: Sequence[Submission]) -> list[str]:
    """End the jobs that haven't ended; returns their ids.

    Raises:
        StudyError: if the cluster doesn't answer.
    """
    latest = {each.job_id: each for each in sent}
    where = of(sent)
    unknown = [place.detail for place in where.values() if place.state == "unknown"]
    if unknown:
        raise StudyError(f"can't cancel: {unknown[0]}")
    ended = [job_id for job_id, place in where.items() if place.state != "gone"]
    queued = [latest[job_id].scheduler_id for job_id in ended if latest[job_id].cluster == "slurm"]
    if queued:
        slurm.cancel(queued)
    for job_id in ended:
        if latest[job_id].cluster != "slurm":
            processes.end(int(latest[job_id].scheduler_id))
    return ended


def _here(submission: Submission) -> Whereabouts:
    if submission.cluster == "local":
        number = int(submission.scheduler_id)
        if processes.alive(number, submission.process_created_unix_s):
            return Whereabouts("running", f"process {number}")
    return Whereabouts("gone")


def _on_slurm(sent: Sequence[Submission]) -> dict[str, Whereabouts]:
    if not sent:
        return {}
    try:
        queue = slurm.queue()
    except StudyError as error:
        return {each.job_id: Whereabouts("unknown", str(error)) for each in sent}
    return {each.job_id: _queued(queue.get(each.scheduler_id)) for each in sent}


def _queued(found: slurm.Queued | None) -> Whereabouts:
    if found is None:
        return Whereabouts("gone")
    if found.state != "PENDING":
        return Whereabouts("running", found.nodes)
    if found.reason in slurm.NEVER_STARTS:
        return Whereabouts("stuck", f"{found.reason}: it can't start by itself")
    return Whereabouts("waiting", found.reason)
