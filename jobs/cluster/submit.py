"""Jobs -> Slurm, through submitit: the scripts of the arrays that jobs go out in, and their submission."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.cluster import slurm
from jobs.cluster.arrays import Batch, batches
from jobs.cluster.interpreter import node_python
from jobs.cluster.submissions import record
from jobs.errors import SubmissionError
from jobs.node.provenance import code_version
from jobs.node.run import run_submitted
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan

_SRUN_RANKS = ("--distribution=block", "--kill-on-bad-exit=0")
"""Ranks are numbered node by node; and the others are to tell whom they lost, not to be killed with it."""

_LAST_WORDS_S = 30
"""How long ranks may take, once they have given another up, to say so and to leave: then srun ends one that hangs."""


def submit(paths: StudyPaths, planned: Plan, jobs: Sequence[Job]) -> None:
    """Hand jobs to Slurm, as arrays.

    Raises:
        SubmissionError: if Slurm does not take them.
    """
    version = code_version()
    for batch in batches(planned.study, jobs, slurm.largest_array()):
        executor = slurm_executor(paths, planned, batch)
        try:
            with clean_environment(), executor.batch():
                sent = [executor.submit(run_submitted, str(paths.root), job.id, version) for job in batch.jobs]
        except Exception as error:  # submitit passes on sbatch's message, in several kinds of exception
            raise SubmissionError(
                f"Slurm did not take the jobs: {error}\n`python -m jobs check` may say more"
            ) from error
        record(
            paths,
            "slurm",
            [(job.id, array_job.job_id) for job, array_job in zip(batch.jobs, sent, strict=True)],
            version,
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
    executor = Executor(paths.slurm, python=shlex.join(node_python()))
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
