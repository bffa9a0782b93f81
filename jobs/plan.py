"""Study -> list of jobs: pure, no I/O. The shuffled order and the ids are decided here and nowhere else."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ckpt.layout import layout_of, state_bytes
from jobs.errors import StudyError
from jobs.study import Slurm, Study, parse

_SLURM_DEFAULTS = Slurm(timeout_min=60, signal_delay_s=120, nodes=1, tasks_per_node=1)
"""Where a study leaves it open. Two minutes before the time limit are enough to mark the log and to clean up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job: one strategy on one target at one scale in one round."""

    id: str
    order: int
    """Place in the shuffled order of submission, from 0."""
    round: int
    """From 1."""
    strategy: str
    options: dict[str, Any]
    label: str
    target: str
    nodes: int
    tasks_per_node: int
    trials: int
    """Checkpoints that the job will write, warm-ups included."""
    state_bytes: int
    checkpoint_files: int
    """The most files that one checkpoint takes."""
    checkpoint_bytes: int
    """The most bytes that one checkpoint takes."""

    @property
    def written_bytes(self) -> int:
        """The most bytes that the job will write, over all its trials."""
        return self.trials * self.checkpoint_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A study and every job that it asks for, in the order of submission."""

    study: Study
    jobs: tuple[Job, ...]

    def job(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            StudyError: if the plan has none.
        """
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise StudyError(f"the study {self.study.name} plans no job {job_id!r}; it plans {self._some_ids()}")

    def largest(self, target: str) -> tuple[int, int]:
        """The most bytes, and the most files, that one checkpoint of the study takes on a target."""
        jobs = [job for job in self.jobs if job.target == target]
        return max(job.checkpoint_bytes for job in jobs), max(job.checkpoint_files for job in jobs)

    def find(self, label: str, target: str, round_number: int) -> Job:
        """The job of that strategy (by its label), target and round.

        Raises:
            StudyError: if the plan has none.
        """
        for job in self.jobs:
            if (job.label, job.target, job.round) == (label, target, round_number):
                return job
        labels, names = sorted({j.label for j in self.jobs}), sorted({j.target for j in self.jobs})
        raise StudyError(
            f"the study {self.study.name} plans no job with --strategy {label!r} --target {target!r} --round "
            f"{round_number}: its strategies are {', '.join(labels)}; its targets {', '.join(names)}; its rounds "
            f"1 to {self.study.rounds}"
        )

    def _some_ids(self) -> str:
        shown = ", ".join(job.id for job in self.jobs[:5])
        return shown + (f" and {len(self.jobs) - 5} more" if len(self.jobs) > 5 else "")


def make_plan(study: Study) -> Plan:
    """Every job of a study: each round is one pass over all cells, in a shuffled order of its own.

    Raises:
        CheckpointError: if the state's size can't be known.
    """
    layout = layout_of(study.state)
    size_bytes = state_bytes(layout)
    strategies = study.methods()
    footprints = [each.footprint(layout) for each in strategies]
    jobs: list[Job] = []
    for number in range(1, study.rounds + 1):
        cells = list(itertools.product(range(len(strategies)), study.targets))
        random.Random(f"{study.shuffle_seed} {number}").shuffle(cells)  # noqa: S311  # a shuffle, no secret
        for index, target in cells:
            chosen, footprint = strategies[index], footprints[index]
            jobs.append(
                Job(
                    id=job_id(number, chosen.label, target, nodes=1, tasks_per_node=1),
                    order=len(jobs),
                    round=number,
                    strategy=chosen.name(),
                    options=chosen.options,
                    label=chosen.label,
                    target=target,
                    nodes=1,
                    tasks_per_node=1,
                    trials=study.trials.warmups + study.trials.repeats,
                    state_bytes=size_bytes,
                    checkpoint_files=footprint.file_count,
                    checkpoint_bytes=footprint.size_bytes,
                )
            )
    return Plan(study, tuple(jobs))


def job_id(number: int, label: str, target: str, *, nodes: int, tasks_per_node: int) -> str:
    """A deterministic, readable id that is a file name: `r02-tensorstore_t5x-nvme-1x1`."""
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", f"r{number:02d}-{label}-{target}-{nodes}x{tasks_per_node}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that go to Slurm together, as one array, in the plan's order."""

    jobs: tuple[Job, ...]
    slurm: Slurm
    """What each of them asks for; complete."""
    one_at_a_time: bool
    why: str
    """Why one at a time, or why not."""


def batches(study: Study, jobs: Sequence[Job], largest_array: int = 1000) -> list[Batch]:
    """The arrays that these jobs go out in: one for each different request, none larger than Slurm allows.

    Jobs that share a filesystem would disturb each other's measurements, so they run one after the other.
    Node-local targets on exclusive nodes share nothing, and their jobs run side by side.
    """
    groups: dict[str, list[Job]] = {}
    requests: dict[str, tuple[Slurm, bool]] = {}
    for job in jobs:
        target = study.targets[job.target]
        request = target.slurm.over(study.slurm).over(_SLURM_DEFAULTS)
        apart = (target.node_local or target.path is None) and bool(request.exclusive)
        key = f"{apart} {request.model_dump_json()}"
        requests[key] = request, apart
        groups.setdefault(key, []).append(job)
    found = []
    for key, members in groups.items():
        request, apart = requests[key]
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
            found.append(Batch(part, request, one_at_a_time=not apart, why=why))
    return found


def to_json(plan: Plan) -> str:
    """The plan as text, for `plan.json`."""
    content = {"study": plan.study.model_dump(mode="json"), "jobs": [asdict(job) for job in plan.jobs]}
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str, where: str) -> Plan:
    """The plan from the text of `plan.json`; `where` names it in messages.

    Raises:
        StudyError: if the text is no plan.
    """
    try:
        content = json.loads(text)
        return Plan(parse(content["study"], where), tuple(Job(**job) for job in content["jobs"]))
    except (ValueError, TypeError, LookupError) as error:
        raise StudyError(f"{where} is no plan of this package ({error})") from error
