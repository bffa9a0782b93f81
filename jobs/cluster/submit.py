"""Plan -> jobs on a cluster, through submitit; the only importer of submitit.

`slurm` takes all jobs at once, as arrays, and queues them. `local` and `debug` have no queue: their jobs run here,
one after the other, since two at a time would disturb each other's measurements.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ckpt.disk.durable import write_atomically
from jobs.cluster import slurm
from jobs.cluster.arrays import Batch, batches
from jobs.cluster.processes import created_unix_s
from jobs.errors import StudyError, SubmissionError
from jobs.node.provenance import code_version
from jobs.node.run import run_submitted
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan

ClusterName = Literal["debug", "local", "slurm"]

_SRUN_RANKS = ("--distribution=block", "--kill-on-bad-exit=0")
"""Ranks are numbered node by node; and the others are to tell whom they lost, not to be killed with it."""

_LAST_WORDS_S = 30
"""How long ranks may take, once they have given another up, to say so and to leave: then srun ends one that hangs."""


def default_cluster() -> ClusterName:
    """Slurm where one answers, else this machine."""
    return "slurm" if slurm.answers() else "local"


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


def submissions(paths: StudyPaths) -> list[Submission]:
    """Every submission of a study so far, oldest first."""
    if not paths.submissions_json.exists():
        return []
    try:
        return [_submission(each) for each in json.loads(paths.submissions_json.read_text())]
    except (ValueError, TypeError, RecursionError) as error:
        raise StudyError(
            f"{paths.submissions_json} is damaged ({error}): move it away, and the jobs' logs tell what is done"
        ) from error


def _submission(said: dict[str, Any]) -> Submission:
    """A submission as a file describes it; its number becomes part of file names, and an argument of scancel."""
    found = Submission(**said)
    if not re.fullmatch(r"(DEBUG_)?\d+(_\d+)?", found.scheduler_id):
        raise ValueError(f"the scheduler's number of a job is {found.scheduler_id!r:.80}")
    if found.cluster == "local" and not found.scheduler_id.isdigit():
        raise ValueError(f"the process of a job is {found.scheduler_id!r:.80}")
    if not isinstance(found.job_id, str) or not isinstance(found.process_created_unix_s, float | int):
        raise TypeError(f"the job {found.job_id!r:.80} started at {found.process_created_unix_s!r:.80}")
    return found


class Submitter:
    """Hands a study's jobs to a cluster."""

    def __init__(self, paths: StudyPaths, planned: Plan, cluster: ClusterName) -> None:
        self._paths, self._plan, self._cluster = paths, planned, cluster
        self._version = code_version()
        self._to_start: list[Job] = []
        self._running: Any = None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand the jobs over; `local` and `debug` only note them, and `advance` starts them.

        Raises:
            SubmissionError: if the cluster does not take them.
        """
        if self._cluster != "slurm":
            self._to_start = list(jobs)
            return
        for batch in batches(self._plan.study, jobs, slurm.largest_array()):
            executor = slurm_executor(self._paths, self._plan, batch)
            try:
                with clean_environment(), executor.batch():
                    sent = [executor.submit(*self._call(job)) for job in batch.jobs]
            except Exception as error:  # submitit passes on what sbatch said, in several kinds of exception
                raise SubmissionError(
                    f"Slurm did not take the jobs: {error}\n`python -m jobs check` may say more"
                ) from error
            self._note([(job, each.job_id) for job, each in zip(batch.jobs, sent, strict=True)])

    def advance(self) -> bool:
        """Start the next job that waits here, if none is running; False when all have been started and ended."""
        if self._running is not None and not self._running.done():
            return True
        self._running = None
        if not self._to_start:
            return False
        job = self._to_start.pop(0)
        submitit_job = self._here(job).submit(*self._call(job))
        self._note([(job, submitit_job.job_id)])
        if self._cluster == "debug":
            with contextlib.suppress(SystemExit):  # how a job that isn't complete ends its process; the log says why
                submitit_job.results()
        else:
            self._running = submitit_job
        return True

    def wait(self, seconds: float) -> None:
        """Wait, asleep, for so long; no longer than until `advance` can start another job."""
        if self._running is None and self._to_start:
            return
        process = -1
        if self._running is not None:
            with contextlib.suppress(OSError):  # gone already; or a kernel before 5.3
                process = os.pidfd_open(int(self._running.job_id))
        if process < 0:
            time.sleep(seconds)
            return
        try:
            select.select([process], [], [], seconds)
        finally:
            os.close(process)

    def _call(self, job: Job) -> tuple[Any, ...]:
        return run_submitted, str(self._paths.root), job.id, self._version

    def _here(self, job: Job) -> Any:
        import submitit

        refuse_here(job, self._cluster)

        if self._cluster == "debug":
            return submitit.DebugExecutor(self._paths.slurm)
        executor = submitit.LocalExecutor(self._paths.slurm)
        # submitit's own limit for a local job is two minutes.
        limit_min = self._plan.study.slurm.timeout_min or 60
        executor.update_parameters(timeout_min=limit_min, tasks_per_node=job.scale.processes)
        return executor

    def _note(self, sent: Sequence[tuple[Job, str]]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        created = [created_unix_s(int(number)) if self._cluster == "local" else 0.0 for _, number in sent]
        new = [
            Submission(job.id, self._cluster, number, start, now, self._version)
            for (job, number), start in zip(sent, created, strict=True)
        ]
        everything = [asdict(each) for each in [*submissions(self._paths), *new]]
        write_atomically(self._paths.submissions_json, json.dumps(everything, indent=1) + "\n", sync=False)


def refuse_here(job: Job, cluster: ClusterName) -> None:
    """Make sure that this machine can be what a job asks for.

    Raises:
        SubmissionError: if it takes several nodes, or several processes where there is one.
    """
    if job.nodes > 1 and cluster == "local":
        raise SubmissionError(
            f"{job.id} takes {job.nodes} nodes, and --cluster local has one: use --cluster slurm, or `nodes = 1` below "
            "[slurm] (`make cluster` starts a Slurm of four nodes on this machine)"
        )
    if job.scale.processes > 1 and cluster == "debug":
        raise SubmissionError(
            f"{job.id} takes {job.scale.processes} processes, and --cluster debug has one: use --cluster local or slurm"
        )


def slurm_executor(paths: StudyPaths, planned: Plan, batch: Batch) -> Any:
    """Submitit's executor for one array, with all parameters set."""
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit ships no types
        @classmethod
        def affinity(cls) -> int:
            """Constructible where there is no Slurm, to show what would be submitted."""
            return 2

    parameters = batch.slurm.model_dump(mode="json", exclude_none=True)
    scale = batch.jobs[0].scale
    parameters |= {"nodes": scale.nodes, "tasks_per_node": scale.processes_per_node}
    name = f"ckpt-{planned.study.name}"
    if batch.one_at_a_time:
        # Within the array by its limit; between arrays, and between submissions, by the common name.
        parameters["array_parallelism"] = parameters.get("array_parallelism", 1)
        parameters["dependency"] = ",".join(filter(None, [parameters.get("dependency"), "singleton"]))
    else:
        name += "-side-by-side"
    executor = Executor(paths.slurm)
    # sbatch reads directives such as #BB and #DW only above the first command.
    if "setup" in parameters:
        parameters["setup"] = sorted(parameters["setup"], key=lambda line: not line.startswith("#"))
    if "cpus_per_task" in parameters:  # since Slurm 22.05 srun doesn't take it from sbatch
        parameters["srun_args"] = [f"--cpus-per-task={parameters['cpus_per_task']}", *parameters.get("srun_args", [])]
    if scale.processes > 1:
        wait_s = int(planned.study.trials.rank_timeout_s) + _LAST_WORDS_S
        parameters["srun_args"] = [*_SRUN_RANKS, f"--wait={wait_s}", *parameters.get("srun_args", [])]
    if parameters.get("exclusive") is False:
        del parameters["exclusive"]  # the option's absence says that
    # From the names that all of submitit's executors share to those of this one.
    parameters = executor._convert_parameters({"wckey": None, "job_name": name} | parameters)  # noqa: SLF001
    executor.update_parameters(**parameters)
    return executor


def script(paths: StudyPaths, planned: Plan, batch: Batch) -> str:
    """The sbatch script that would be submitted for one array."""
    executor = slurm_executor(paths, planned, batch)
    if len(batch.jobs) > 1:
        executor.parameters["map_count"] = len(batch.jobs)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")  # noqa: SLF001
    return text


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without the variables of a surrounding allocation, which sbatch and srun would take for options."""
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
    leaking = {k: v for k, v in os.environ.items() if k.startswith(("SBATCH_", "SLURM_", "SRUN_")) and k not in kept}
    for variable in leaking:
        del os.environ[variable]
    try:
        yield
    finally:
        os.environ.update(leaking)
