"""Study -> list of jobs: pure, no I/O. The shuffled order and the ids are decided here and nowhere else."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from ckpt.state.layout import state_bytes
from ckpt.workload.spec import layout_of
from jobs.errors import StudyError
from jobs.plan import matrix
from jobs.plan.loop import NONE
from jobs.plan.scale import Scale
from jobs.plan.study import Study
from jobs.plan.study_file import parse


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
    load_ranks: int
    trials: int
    """Checkpoints that the job will write, warm-ups, or the first save of a training loop, included."""
    state_bytes: int
    rank_bytes: int
    """The largest share of the state that a rank saves."""
    checkpoint_files: int
    """The most files that one checkpoint takes, on all nodes together."""
    checkpoint_bytes: int
    """The most bytes that one checkpoint takes, on all nodes together."""
    directory_files: int
    """The most files that the job has at a time in a node's own directory; in the one that all share."""
    directory_bytes: int
    """The same in bytes."""
    way: str = ""
    """How it saves in a training loop; empty without one, as the next."""
    step: str = ""
    """What a step of the loop does."""
    blocks: int = 0
    """Blocks of the loop, that of the first save included."""
    levels: int = 1
    """Targets on which every checkpoint lies in the end."""

    @property
    def part(self) -> str:
        """What the job consists of: `trial`, or `block` where it has a training loop."""
        return "block" if self.blocks else "trial"

    @property
    def parts(self) -> int:
        """How many of these it has."""
        return self.blocks or self.trials

    @property
    def scale(self) -> Scale:
        """How many processes the job has, and what for."""
        return Scale(self.nodes, self.tasks_per_node, self.load_ranks)

    @property
    def written_bytes(self) -> int:
        """The most bytes that the job will write, over all its trials, to all levels."""
        return self.trials * self.checkpoint_bytes * self.levels


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
        """The most bytes, and the most files, that a job of the study has at a time in a directory of a target."""
        jobs = [job for job in self.jobs if target in {job.target, self.study.targets[job.target].drain_to}]
        return max((job.directory_bytes for job in jobs), default=0), max(
            (job.directory_files for job in jobs), default=0
        )

    def find(self, label: str, target: str, round_number: int, scale: str) -> Job:
        """The job of that strategy (by its label), target, round and scale; where there is one scale, it needs no name.

        Raises:
            StudyError: if the plan has none, or several.
        """
        candidates = [job for job in self.jobs if (job.label, job.target, job.round) == (label, target, round_number)]
        chosen = [job for job in candidates if scale in {"", str(job.scale)}]
        if len(chosen) == 1:
            return chosen[0]
        if candidates:
            scales = ", ".join(str(job.scale) for job in candidates)
            raise StudyError(f"the study {self.study.name} plans that at the scales {scales}: choose one by --scale")
        labels, names = sorted({j.label for j in self.jobs}), sorted({j.target for j in self.jobs})
        raise StudyError(
            f"the study {self.study.name} plans no job with --strategy {label!r} --target {target!r} --round "
            f"{round_number}: its strategies are {', '.join(labels)}; its targets {', '.join(names)}; its rounds "
            f"1 to {self.study.rounds}"
        )

    def left_out(self) -> list[str]:
        """What the study asks for and can't be done, with the reason."""
        return self.study.dropped() + matrix.left_out(self.study)

    def _some_ids(self) -> str:
        shown = ", ".join(job.id for job in self.jobs[:5])
        return shown + (f" and {len(self.jobs) - 5} more" if len(self.jobs) > 5 else "")


def make_plan(study: Study) -> Plan:
    """Every job of a study: a round is one pass over all cells, in a shuffled order of its own.

    Raises:
        CheckpointError: if the state's size can't be known.
    """
    layout = layout_of(study.state)
    size_bytes = state_bytes(layout)
    cells = list(matrix.of(study, layout))
    if not cells:
        raise StudyError(f"the study {study.name} plans no job: {'; '.join(Plan(study, ()).left_out())}")
    jobs: list[Job] = []
    for number in range(1, study.rounds + 1):
        shuffled = list(cells)
        random.Random(f"{study.shuffle_seed} {number}").shuffle(shuffled)  # noqa: S311  # a shuffle, no secret
        for cell in shuffled:
            label = cell.strategy.label + (f"+way={cell.way}" if cell.way else "")
            at_a_time = study.loop.saves if study.loop and cell.way != NONE else 1
            jobs.append(
                Job(
                    id=job_id(number, label, cell.target, cell.scale, cell.step),
                    order=len(jobs),
                    round=number,
                    strategy=cell.strategy.name,
                    options=cell.strategy.options,
                    label=label,
                    way=cell.way,
                    step=cell.step,
                    target=cell.target,
                    nodes=cell.scale.nodes,
                    tasks_per_node=cell.scale.tasks_per_node,
                    load_ranks=cell.scale.load_ranks,
                    trials=_checkpoints(study, cell.way),
                    state_bytes=size_bytes,
                    rank_bytes=cell.rank_bytes,
                    checkpoint_files=sum(directory.file_count for directory in cell.directories),
                    checkpoint_bytes=sum(directory.size_bytes for directory in cell.directories),
                    directory_files=at_a_time * max(directory.file_count for directory in cell.directories),
                    directory_bytes=at_a_time * max(directory.size_bytes for directory in cell.directories),
                    blocks=study.loop.blocks_of(cell.way) if study.loop else 0,
                    levels=2 if study.targets[cell.target].drain_to else 1,
                )
            )
    return Plan(study, tuple(jobs))


def _checkpoints(study: Study, way: str) -> int:
    """How many checkpoints a job writes."""
    if study.loop is None:
        return study.trials.warmups + study.trials.repeats
    return study.loop.checkpoints_of(way)


def job_id(number: int, label: str, target: str, scale: Scale, step: str = "") -> str:
    """A deterministic, readable id that is a file name: `r02-tensorstore_t5x-nvme-1x1`, in a loop `...-1x1-compute`."""
    parts = [f"r{number:02d}", label, target, str(scale), *([step] if step else [])]
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", "-".join(parts))


def to_json(plan: Plan) -> str:
    """The plan as text, for `plan.json`."""
    content = {"study": plan.study.model_dump(mode="json"), "jobs": [asdict(job) for job in plan.jobs]}
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str, where: str) -> Plan:
    """The plan from the text of `plan.json`; `where` names it in messages.

    Raises:
        StudyError: if the text is no plan, or names a job in a way that this package doesn't.
    """
    try:
        content = json.loads(text)
        study = parse(content["study"], where)
        return Plan(study, tuple(_job(job, study) for job in content["jobs"]))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise StudyError(f"{where} is no plan of this package ({error})") from error


_TYPES: dict[str, type] = {"int": int, "str": str, "dict[str, Any]": dict}


def _job(facts: dict[str, Any], study: Study) -> Job:
    """A job as a file describes it, if every value has its type, and its id, which names files, is the expected one."""
    job = Job(**facts)
    for column in fields(Job):
        if type(getattr(job, column.name)) is not _TYPES[str(column.type)]:
            raise TypeError(f"a job's {column.name} is {getattr(job, column.name)!r:.80}, and no {column.type}")
    if job.target not in study.targets:
        raise ValueError(f"a job's target is {job.target!r:.80}, and the study has {', '.join(study.targets)}")
    expected = job_id(job.round, job.label, job.target, job.scale, job.step)
    if job.id != expected:
        raise ValueError(
            f"a job has the id {job.id!r:.80}, expected {expected!r}: plan the study anew from its study.toml"
        )
    return job
