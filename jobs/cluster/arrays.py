"""Which jobs go to Slurm together, as one array, and whether they run one after the other; pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.plan.plan import Job
from jobs.plan.study import Slurm, Study

_SLURM_DEFAULTS = Slurm(timeout_min=60, signal_delay_s=120)
"""Where a study leaves it open. Two minutes before the time limit are enough to mark the log and to clean up."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that go to Slurm together, as one array, in the plan's order."""

    jobs: tuple[Job, ...]
    slurm: Slurm
    """What every one of them asks for; complete."""
    one_at_a_time: bool
    why: str
    """Why one at a time, or why not."""


def batches(study: Study, jobs: Sequence[Job], largest_array: int = 1000) -> list[Batch]:
    """The arrays that these jobs go out in: one per different request, none larger than Slurm allows.

    Jobs that share a filesystem would disturb one another's measurements, so they run one after the other.
    Node-local targets on exclusive nodes share nothing, and their jobs run side by side.
    """
    requests = {job.id: _request(study, job) for job in jobs}
    # Rounds stay one after the other, where not all jobs can go out as one array: drift would look like a difference.
    several = len({repr(request) for request, apart in requests.values() if not apart}) > 1
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        request, apart = requests[job.id]
        when = job.round if several and not apart else 0
        groups.setdefault(f"{when:03d} {apart} {request.model_dump_json()}", []).append(job)
    arrays = []
    for members in groups.values():
        request, apart = requests[members[0].id]
        names = ", ".join(sorted({job.target for job in members}))
        why = (
            f"side by side: {names} is node-local, and each job has its node to itself"
            if apart
            else f"one after the other: jobs on {names} would disturb each other"
        )
        if not apart and all(study.targets[job.target].node_local for job in members):
            why += " (node-local, but the nodes are shared: set `exclusive = true` to run them side by side)"
        for start in range(0, len(members), largest_array):
            part = tuple(members[start : start + largest_array])
            arrays.append(Batch(part, request, one_at_a_time=not apart, why=why))
    return arrays


def _request(study: Study, job: Job) -> tuple[Slurm, bool]:
    """What a job asks of Slurm, and whether it can run beside others without disturbing them."""
    target = study.targets[job.target]
    scale = {"nodes": (job.nodes,), "tasks_per_node": (job.scale.processes_per_node,)}
    request = target.slurm.over(study.slurm).over(_SLURM_DEFAULTS).model_copy(update=scale)
    return request, target.on_each_node and bool(request.exclusive)
