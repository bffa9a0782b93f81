"""Plan -> jobs on a cluster, through submitit; the only importer of submitit.

`slurm` takes all jobs at once and queues them. `local` and `debug` have no queue: their jobs run here, one after
the other, since two at a time would disturb each other's measurements.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.errors import SubmissionError
from jobs.paths import StudyPaths
from jobs.plan import Job
from jobs.provenance import code_version
from jobs.run import run_job
from jobs.study import Slurm

ClusterName = Literal["debug", "local", "slurm"]

_ANSWER_S = 30
"""How long Slurm may take to answer a question."""

_GRACE_S = 20
"""How long a local job that is cancelled may take to write its log and clean up."""


def default_cluster() -> ClusterName:
    """Slurm where one answers, else this machine."""
    if shutil.which("sbatch") is None:
        return "local"
    try:
        subprocess.run(["sinfo", "--noheader"], capture_output=True, check=True, timeout=_ANSWER_S)
    except (OSError, subprocess.SubprocessError):
        return "local"
    return "slurm"


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


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What a cluster says of a job: `waiting`, `running` or `gone`; and why, or on which node."""

    state: Literal["waiting", "running", "gone"]
    detail: str = ""


def submissions(paths: StudyPaths) -> list[Submission]:
    """Every submission of a study so far, oldest first."""
    if not paths.submissions_json.exists():
        return []
    return [Submission(**each) for each in json.loads(paths.submissions_json.read_text())]


class Submitter:
    """Hands a study's jobs to a cluster."""

    def __init__(self, paths: StudyPaths, cluster: ClusterName, slurm: Slurm) -> None:
        self._paths, self._cluster, self._slurm = paths, cluster, slurm
        self._to_start: list[Job] = []
        self._running: Any = None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand the jobs over; `local` and `debug` only note them, and `advance` starts them.

        Raises:
            SubmissionError: if the cluster does not take them.
        """
        if self._cluster == "slurm":
            raise SubmissionError("cluster slurm: not supported yet; use --cluster local")
        self._to_start = list(jobs)

    def advance(self) -> bool:
        """Start the next job that waits here, if none is running; False when all have been started and ended."""
        if self._running is not None and not self._running.done():
            return True
        self._running = None
        if not self._to_start:
            return False
        job = self._to_start.pop(0)
        submitit_job = self._executor().submit(run_job, str(self._paths.root), job.id)
        self._note([(job, submitit_job.job_id)])
        if self._cluster == "debug":
            submitit_job.results()
        else:
            self._running = submitit_job
        return True

    def _executor(self) -> Any:
        submitit = importlib.import_module("submitit")
        kind = {"local": submitit.LocalExecutor, "debug": submitit.DebugExecutor}[self._cluster]
        executor = kind(self._paths.slurm)
        if self._cluster == "local":
            # submitit's own limit for a local job is two minutes.
            executor.update_parameters(timeout_min=self._slurm.timeout_min)
        return executor

    def _note(self, sent: Sequence[tuple[Job, str]]) -> None:
        version, now = code_version(), datetime.now(UTC).isoformat(timespec="seconds")
        created = [_created_unix_s(int(number)) if self._cluster == "local" else 0.0 for _, number in sent]
        new = [
            Submission(job.id, self._cluster, number, start, now, version)
            for (job, number), start in zip(sent, created, strict=True)
        ]
        everything = [asdict(each) for each in [*submissions(self._paths), *new]]
        partial = self._paths.submissions_json.with_suffix(".partial")
        partial.write_text(json.dumps(everything, indent=1) + "\n")
        partial.replace(self._paths.submissions_json)


def whereabouts(sent: Sequence[Submission]) -> Mapping[str, Whereabouts]:
    """Where each job is now, by its latest submission."""
    latest = {each.job_id: each for each in sent}
    return {job_id: _local_whereabouts(each) for job_id, each in latest.items()}


def cancel(sent: Sequence[Submission]) -> list[str]:
    """End the jobs of a study that haven't ended; returns their ids."""
    import psutil

    ended = []
    for job_id, where in whereabouts(sent).items():
        if where.state == "gone":
            continue
        submission = next(each for each in reversed(sent) if each.job_id == job_id)
        controller = psutil.Process(int(submission.scheduler_id))
        family = [*controller.children(recursive=True), controller]
        for process in family:
            # Python's KeyboardInterrupt: the job marks its log and removes its scratch directory.
            _send(process, signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=_GRACE_S)
        for process in alive:
            _send(process, signal.SIGKILL)
        ended.append(job_id)
    return ended


def _send(process: Any, number: signal.Signals) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _local_whereabouts(submission: Submission) -> Whereabouts:
    if submission.cluster != "local":
        return Whereabouts("gone")
    import psutil

    number = int(submission.scheduler_id)
    same = abs(_created_unix_s(number) - submission.process_created_unix_s) < 1
    if same and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        return Whereabouts("running", f"process {number} on {os.uname().nodename}")
    return Whereabouts("gone")


def _created_unix_s(process_id: int) -> float:
    import psutil

    try:
        return float(psutil.Process(process_id).create_time())
    except psutil.NoSuchProcess:
        return 0.0
