"""A study's jobs in one Slurm job, one srun after the other: for sites that allow few jobs, or one."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Sequence
from dataclasses import replace

from ckpt.cli import unwritten
from jobs.cluster import slurm
from jobs.cluster.arrays import Batch, batches
from jobs.cluster.interpreter import node_python
from jobs.cluster.refusals import UNSURE, not_taken, words
from jobs.cluster.submit import Sender, clean_environment, slurm_executor
from jobs.errors import StudyError, SubmissionError
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan
from jobs.plan.slurm_table import Slurm

_BODY = """\
# One job of the study after the other; what has no time left waits for the next submission.
code=0
one() {{ # JOB SRUN-OPTIONS...
  if ((SECONDS > {limit_s})); then echo "$1: no time left"; code=1; return; fi
  srun --unbuffered --open-mode=append --output={directory}/%j_"$1".out --error={directory}/%j_"$1".err \\
    "${{@:2}}" {python} -u -m jobs job {root} "$1" </dev/null && return
  if (($? == 75)); then echo "$1: interrupted, and what comes after it is not started"; exit 1; fi
  code=1
}}
{jobs}
exit $code"""


class OneJobSender(Sender):
    """Hands all jobs to Slurm as one, or as one for each request that differs in more than its scale."""

    def send(self, most: int | None = None) -> None:
        """Hand over all jobs.

        Raises:
            NoAnswerError: if Slurm doesn't answer.
            SubmissionError: if it doesn't take them.
        """
        del most  # a job's parts can't wait outside it
        for request, jobs in self._requests():
            file = self._paths.slurm / f".submission_file_{uuid.uuid4().hex}.sh"
            try:
                file.write_text(script(self._paths, self._plan, request, jobs))
                with clean_environment():
                    number = slurm.ask("sbatch", "--parsable", str(file)).strip().partition(";")[0]
            except OSError as error:
                raise SubmissionError(f"{unwritten(error, self._paths.slurm)}, or try --results DIR") from error
            except StudyError as error:
                refused = words(str(error))
                if not UNSURE.search(refused):
                    file.unlink()  # otherwise every later submission looks for a job of it
                raise not_taken("Slurm did not take the job", refused, self.requests) from error
            file.rename(self._paths.slurm / f"{number}_submission.sh")
            self._note([(job.id, number) for job in jobs])

    def scripts(self) -> list[str]:
        """What would be submitted."""
        return [script(self._paths, self._plan, request, jobs) for request, jobs in self._requests()]

    def _requests(self) -> list[tuple[Slurm, Sequence[Job]]]:
        """The jobs by what they ask for, whatever their scale, in the plan's order."""
        order = {job.id: job.order for job in self.left}
        requests: dict[str, tuple[Slurm, list[Job]]] = {}
        for batch in batches(self._plan.study, self.left, max(1, len(self.left)), self._given):
            request = batch.slurm.model_copy(update={"nodes": None, "tasks_per_node": None})
            requests.setdefault(request.model_dump_json(), (request, []))[1].extend(batch.jobs)
        return [(request, sorted(jobs, key=lambda job: order[job.id])) for request, jobs in requests.values()]


def script(paths: StudyPaths, planned: Plan, request: Slurm, jobs: Sequence[Job]) -> str:
    """The sbatch script of jobs that ask for the same: with as many nodes and tasks as the largest of them."""
    batch = Batch(tuple(jobs), request, one_at_a_time=True, why="")
    executor = slurm_executor(paths, planned, batch)
    executor.parameters["nodes"] = max(job.nodes for job in jobs)
    executor.parameters["ntasks_per_node"] = max(job.scale.processes_per_node for job in jobs)
    executor.parameters["use_srun"] = False
    body = _BODY.format(
        limit_s=60 * (request.timeout_min or 0) - (request.signal_delay_s or 0),
        directory=shlex.quote(str(paths.slurm)),
        root=shlex.quote(str(paths.root)),
        python=shlex.join(node_python()),
        jobs="\n".join(_one(paths, planned, replace(batch, jobs=(job,))) for job in jobs),
    )
    text: str = executor._make_submission_file_text(body, "one-job")  # noqa: SLF001
    return text


def _one(paths: StudyPaths, planned: Plan, batch: Batch) -> str:
    """The line of the script that runs one job."""
    (job,) = batch.jobs
    scale = job.scale
    options = [
        f"--nodes={scale.nodes}", f"--ntasks-per-node={scale.processes_per_node}", f"--ntasks={scale.processes}",
        *slurm_executor(paths, planned, batch).parameters["srun_args"],
    ]  # fmt: skip
    return shlex.join(["one", job.id, *options])
