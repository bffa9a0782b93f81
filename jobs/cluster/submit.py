"""Jobs -> Slurm, through submitit: the scripts of the arrays that jobs go out in, and their submission."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt.cli import unwritten
from jobs.cluster import slurm, slurm_states
from jobs.cluster.arrays import Batch, batches, from_environment, origins
from jobs.cluster.interpreter import node_python
from jobs.cluster.orphans import end_orphans
from jobs.cluster.refusals import NOT_NOW, SUBMIT_LIMIT, UNSURE, not_taken, words
from jobs.cluster.submissions import record
from jobs.errors import NoAnswerError, StudyError, SubmissionError
from jobs.node.provenance import code_version
from jobs.node.run import run_submitted
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan
from jobs.plan.slurm_table import Slurm

_SRUN = ("--export=ALL",)
"""Where sbatch exports nothing, by a site's default or a user's wish, the job's own variables still reach its ranks."""

_SRUN_RANKS = ("--distribution=block", "--kill-on-bad-exit=0")
"""Ranks are numbered node by node; and the others are to tell whom they lost, not to be killed with it."""

_OF_JOBS_ALONE = frozenset({
    "additional_parameters", "array", "array_parallelism", "begin", "comment", "dependency", "error", "export", "hold",
    "job_name", "mail_type", "mail-type", "mail_user", "mail-user", "no-requeue", "nodes", "ntasks_per_node",
    "open-mode", "output", "requeue", "setup", "signal", "signal_delay_s", "srun_args", "time",
})  # fmt: skip
"""Parameters that say when and how jobs run, and not where; `additional_parameters` have sbatch's names."""

_LAST_WORDS_S = 30
"""How long ranks may take, once they have given another up, to say so and to leave: then srun ends one that hangs."""

_ROOM_S = 15
"""How long after the last try jobs are sent in the place of those that have ended since."""

_RETRY_S = 60
"""How long after the last try one more is sent where none of the study's has ended, but others may have."""


class Sender:
    """Hands jobs to Slurm, as arrays; as many as it takes, and the rest as room comes.

    Attributes:
        requests: who pays for the jobs and which queue they go to, and whether a variable says so.
        sent: how many jobs Slurm has taken.
        left: the jobs that it has not taken yet, in the plan's order.
        refusal: why not, in its own words.
        full: whether there will be room when jobs have ended; otherwise Slurm does not want what is left at all.
    """

    def __init__(self, paths: StudyPaths, planned: Plan, jobs: Sequence[Job]) -> None:
        self._paths, self._plan, self._version = paths, planned, code_version()
        self._most, self._given = slurm.largest_array(), from_environment(os.environ)
        arrays = batches(planned.study, jobs, self._most, self._given)
        self.requests = list(dict.fromkeys(origins(batch.slurm, self._given) for batch in arrays))
        self.sent = 0
        self._on_their_way, self._tried_s = 0, time.monotonic()
        self.left = list(jobs)
        self.refusal, self.full = "", False
        self._taken: list[Slurm] = []
        self._unanswered = False

    def send(self, most: int | None = None) -> None:
        """Hand over as many jobs as Slurm takes now, but at most that many.

        Raises:
            NoAnswerError: if it doesn't answer.
            SubmissionError: if it doesn't take the others, and room does not help.
        """
        self.refusal, self.full = "", False
        self._taken.clear()
        least_left = 0 if most is None else max(0, len(self.left) - most)
        while len(self.left) > least_left and not self.refusal:
            batch = batches(self._plan.study, self.left, self._most, self._given)[0]
            self._send_some(replace(batch, jobs=batch.jobs[: len(self.left) - least_left]))
        if self.refusal and not self.full:
            what = f"Slurm did not take {_jobs(len(self.left))}"
            if self.sent:
                total = self.sent + len(self.left)
                what = f"{self.sent} of {total} jobs are submitted and stay in the queue; {what}"
            raise not_taken(what, self.refusal, self.requests)

    def has_ended(self, on_their_way: int) -> bool:
        """Whether all jobs are submitted; sends more if fewer of the study's are on their way than at the last try.

        A controller that doesn't answer is asked again later.

        Raises:
            SubmissionError: if Slurm doesn't take them, and room does not help.
        """
        if not self.left:
            return True
        self._on_their_way = max(self._on_their_way, on_their_way)  # an earlier submission's too
        now_s, ended = time.monotonic(), self._on_their_way - on_their_way
        if now_s >= self._tried_s + (_ROOM_S if ended > 0 and not self._unanswered else _RETRY_S):
            before = len(self.left)
            with contextlib.suppress(NoAnswerError):
                self._send_again(max(1, ended))
            self._tried_s = time.monotonic()
            if len(self.left) < before:  # otherwise Slurm may count a job that has just ended, and does not soon
                self._on_their_way = on_their_way + before - len(self.left)
        return False

    def _send_again(self, most: int) -> None:
        """Send more; first end what Slurm may have queued when it didn't answer, so that nothing is sent twice."""
        if self._unanswered:
            end_orphans(self._paths, failed_now=True)
        self._unanswered = True
        self.send(most)
        self._unanswered = False

    def _send_some(self, batch: Batch) -> None:
        """Hand over an array's jobs, or fewer of them; of one that is refused, see whether a smaller one is taken.

        Where jobs go out one by one, the first with the same request was the test for all.
        """
        jobs, limited = batch.jobs, False
        tested = self._most == 1 and batch.slurm in self._taken
        while not tested and (refused := refusal(self._paths, self._plan, replace(batch, jobs=jobs))):
            if NOT_NOW.search(refused):
                break  # only the submission itself shows which; jobs for nodes that are down wait
            limited = limited or bool(SUBMIT_LIMIT.search(refused))
            if len(jobs) == 1 or UNSURE.search(refused):
                self.refusal, self.full = refused, limited
                return
            # A limit leaves room for some jobs. Any other rule either holds for all of them, or for arrays.
            jobs = jobs[: len(jobs) // 2 if limited else 1]
        if len(jobs) == 1 < len(batch.jobs) and not limited:
            self._most = 1
        self._hand_over(replace(batch, jobs=jobs))
        self._taken.append(batch.slurm)

    def _hand_over(self, batch: Batch) -> None:
        """Submit an array's jobs; if Slurm doesn't take them, note why."""
        executor = slurm_executor(self._paths, self._plan, batch)
        arguments = [(str(self._paths.root), job.id, self._version) for job in batch.jobs]
        try:
            # submitit prints what sbatch printed, and raises it too
            with clean_environment(), contextlib.redirect_stderr(io.StringIO()), executor.batch():
                sent = [executor.submit(run_submitted, *job) for job in arguments]
        except OSError as error:
            raise SubmissionError(f"{unwritten(error, self._paths.slurm)}, or try --results DIR") from error
        except Exception as error:  # noqa: BLE001  # submitit passes on sbatch's message, in several kinds of them
            self.refusal = words(str(error)) or type(error).__name__
            self.full = bool(SUBMIT_LIMIT.search(self.refusal))
            if executor.script and not UNSURE.search(self.refusal):
                executor.script.unlink()  # otherwise every later submission looks for a job of it
            return
        self._note([(job.id, array_job.job_id) for job, array_job in zip(batch.jobs, sent, strict=True)])

    def _note(self, numbers: Sequence[tuple[str, str]]) -> None:
        """Note the jobs that Slurm has taken, by their ids and its numbers.

        Raises:
            SubmissionError: if the list of submissions can't be written.
        """
        try:
            record(self._paths, "slurm", numbers, self._version)
        except OSError as error:
            unwanted = " ".join(slurm_states.arrays(number for _, number in numbers))
            raise SubmissionError(
                f"{unwritten(error, self._paths.submissions_json)}. Slurm has taken jobs that the list lacks: "
                f"`scancel {unwanted}`, and then type the same command again"
            ) from error
        taken = {job_id for job_id, _ in numbers}
        self.sent += len(taken)
        self._on_their_way += len(taken)
        self.left = [job for job in self.left if job.id not in taken]


def refusal(paths: StudyPaths, planned: Plan, batch: Batch) -> str:
    """Why Slurm would not take an array: account, limits, everything that this site checks; empty if it would."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file, clean_environment():
        file.write(script(paths, planned, batch))
        file.flush()
        try:
            slurm.ask("sbatch", "--test-only", file.name)
        except StudyError as error:
            return words(str(error))
    return ""


def _jobs(number: int) -> str:
    return "the job" if number == 1 else f"{number} jobs"


def slurm_executor(paths: StudyPaths, planned: Plan, batch: Batch) -> Any:
    """Submitit's executor for one array, with all parameters set."""
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit ships no types
        @classmethod
        def affinity(cls) -> int:
            """Constructible where there is no Slurm, to show what would be submitted."""
            return 2

        script: Path | None = None
        """Of a job that is no array."""

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            self.script = submission_file_path
            return ["sbatch", str(submission_file_path)]

    parameters = batch.slurm.model_dump(mode="json", exclude_none=True, exclude={"without"})
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
    parameters["srun_args"] = [*_SRUN, *parameters.get("srun_args", [])]
    if scale.processes > 1:
        wait_s = int(planned.study.trials.rank_timeout_s) + _LAST_WORDS_S
        parameters["srun_args"] = [*_SRUN_RANKS, f"--wait={wait_s}", *parameters.get("srun_args", [])]
    if parameters.get("exclusive") is False:
        del parameters["exclusive"]  # the option's absence says that
    # From the names that all of submitit's executors share to those of this one.
    parameters = executor._convert_parameters({"wckey": None, "job_name": name} | parameters)  # noqa: SLF001
    executor.update_parameters(**parameters)
    return executor


def flags(paths: StudyPaths, planned: Plan, batch: Batch) -> list[str]:
    """The options by which a single task gets onto nodes as an array's jobs ask for; of srun and sbatch."""
    parameters = slurm_executor(paths, planned, batch).parameters
    options = parameters | parameters.get("additional_parameters", {})
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in options.items()
        if value is not None and key not in _OF_JOBS_ALONE
    ]


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
