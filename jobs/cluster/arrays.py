"""Which jobs go to Slurm together, as one array, and whether they run one after the other; pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.plan.plan import Job
from jobs.plan.slurm_table import Slurm
from jobs.plan.study import Study

_TIMEOUT_MIN = 60
"""Where a study leaves it open."""

_SIGNAL_DELAY_S = 120
"""Where a study leaves it open. It is enough to mark the log and to clean up."""

_CHOSEN_BY_USERS = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"}
"""Who pays and which queue, which sites advise to export. What is measured stands in the study alone."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that go to Slurm together, as one array, in the plan's order."""

    jobs: tuple[Job, ...]
    slurm: Slurm
    """What every one of them asks for; complete."""
    one_at_a_time: bool
    why: str
    """Why one at a time, or why not."""


def from_environment(environment: Mapping[str, str]) -> Slurm:
    """What a user's environment says of account, partition and quality of service."""
    return Slurm(**{key: environment.get(variable) or None for variable, key in _CHOSEN_BY_USERS.items()})


def origins(request: Slurm, given: Slurm) -> str:
    """Who pays for a request and which queue it goes to, and which variable says so where the study doesn't."""
    asked = []
    for variable, key in _CHOSEN_BY_USERS.items():
        value = getattr(request, key)
        if value is not None:
            asked.append(f"{key} {value}" + (f" (from {variable})" if value == getattr(given, key) else ""))
    return f"jobs go to {', '.join(asked)}" if asked else ""


def batches(study: Study, jobs: Sequence[Job], largest_array: int = 1000, given: Slurm | None = None) -> list[Batch]:
    """The arrays that these jobs go out in: one per different request, none larger than Slurm allows.

    What the study leaves open is taken from what is `given`, the user's environment.


    Jobs that share a filesystem would disturb one another's measurements, so they run one after the other.
    Node-local targets on exclusive nodes share nothing, and their jobs run side by side.
    """
    requests = {job.id: _request(study, job, given or Slurm()) for job in jobs}
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


def _request(study: Study, job: Job, given: Slurm) -> tuple[Slurm, bool]:
    """What a job asks of Slurm, and whether it can run beside others without disturbing them."""
    target = study.targets[job.target]
    request = target.slurm.over(study.slurm).over(given)
    timeout_min = request.timeout_min or _TIMEOUT_MIN
    complete = {
        "nodes": (job.nodes,),
        "tasks_per_node": (job.scale.processes_per_node,),
        "timeout_min": timeout_min,
        "signal_delay_s": request.signal_delay_s or min(_SIGNAL_DELAY_S, timeout_min * 60 // 4),
    }
    return request.model_copy(update=complete), target.on_each_node and bool(request.exclusive)
