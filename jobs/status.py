"""The state of every job of a study, from its log and from the queue of the cluster."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckpt.cli import printable
from jobs import timing_log
from jobs.cluster import queue_state, slurm
from jobs.cluster.queue_state import QueueState
from jobs.cluster.submissions import Submission, submissions
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan
from jobs.terminal import JobId
from jobs.timing_log import Progress, TimingLogError, file_checks

State = Literal[
    "not submitted", "waiting", "running", "unknown", "stuck", "complete", "skipped", "failed", "interrupted", "lost"
]

ON_THEIR_WAY = frozenset({"waiting", "running", "unknown"})
"""States that change without anybody's help."""

BAD = frozenset({"failed", "interrupted", "lost", "stuck"})
"""States that need attention."""

_ENDED = frozenset({"skipped", "failed", "interrupted"})
"""States that a job which is gone stays in."""

_EARLY = frozenset({"interrupted", "lost"})

_MOST_LOGS = 50
"""Of jobs under way, that one look asks for."""

# What they take in system calls.
_LIST_OPERATIONS = 5
_READ_OPERATIONS = 5
_OUTPUT_OPERATIONS = 6

Signature = tuple[int, ...] | None

_STYLES: Mapping[str, str] = {"complete": "green", "running": "cyan"} | dict.fromkeys(BAD, "bold red")

_MOST_ROWS = 40
"""A terminal's table shows so many jobs, the ones that need attention first."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job: its state, and what a person wants to know about it."""

    job_id: str
    state: State
    detail: str
    """Why it waits, where it runs, or what went wrong."""
    trials_done: int
    trials: int
    last_bandwidth_gbps: float | None
    """Of the last operation, in GB/s of the state's logical size."""
    log: str
    """Path of its timing log, whether it is there yet or not."""


def of_study(paths: StudyPaths, plan: Plan) -> list[JobStatus]:
    """The status of every planned job."""
    return Watch(paths, plan).look()


@dataclass(slots=True, eq=False)
class _Known:
    """What a watch knows of a job."""

    job: Job
    submission: Submission | None = None
    signature: Signature = None
    """Of its log, when it was read."""
    progress: Progress | TimingLogError | None = None
    status: JobStatus | None = None
    asked: int = 0
    """The number of the look that last asked for its log."""
    settled: bool = False

    @property
    def on_its_way(self) -> bool:
        """Whether it was, at the last look; or there was none since it was submitted."""
        return self.status is None or self.status.state in ON_THEIR_WAY


class Watch:
    """Looks at a study again and again, and asks filesystem and cluster only for what may have changed.

    A job that has ended is asked for once more and never again, unless it is submitted again. A log is read where its
    directory entry has changed. Of the jobs under way, a look asks for the logs of a few, in turn; the first, for all.
    """

    def __init__(self, paths: StudyPaths, plan: Plan) -> None:
        self._paths = paths
        self._jobs = {job.id: _Known(job) for job in plan.jobs}
        self._submissions: Signature = None
        self._endings: dict[str, str] = {}
        self._looks = 0
        self.operations = 0
        """System calls on the files of the results so far."""

    def look(self) -> list[JobStatus]:
        """The status of every planned job."""
        self._looks += 1
        self._read_submissions()
        unsettled = {job_id: job for job_id, job in self._jobs.items() if not job.settled}
        where = queue_state.of([job.submission for job in unsettled.values() if job.submission])
        gone = {job_id for job_id in unsettled if job_id not in where or where[job_id].state == "gone"}
        just_ended = {job_id for job_id in gone if unsettled[job_id].on_its_way}
        looked_at = self._read_logs(unsettled, just_ended) | just_ended
        for job_id, job in unsettled.items():
            if job_id in looked_at or job_id not in gone:
                job.status = self._status(job, where.get(job_id))
                job.settled = job.status.state == "complete" or (job_id in gone and job.status.state in _ENDED)
        self._explain([job for job_id, job in unsettled.items() if job_id in looked_at & gone])
        return [job.status for job in self._jobs.values() if job.status]

    @property
    def on_slurm(self) -> bool:
        """Whether looks ask Slurm."""
        return any(
            job.submission and job.submission.cluster == "slurm" for job in self._jobs.values() if not job.settled
        )

    def _read_submissions(self) -> None:
        """Take up what was submitted since the last look."""
        signature = self._sign(self._paths.submissions_json)
        if signature == self._submissions:
            return
        self._submissions = signature
        self.operations += _READ_OPERATIONS
        latest = {sent.job_id: sent for sent in submissions(self._paths)}
        for job_id in latest.keys() & self._jobs.keys():
            known = self._jobs[job_id]
            if known.submission != latest[job_id]:
                known.submission, known.status, known.settled = latest[job_id], None, False

    def _read_logs(self, unsettled: Mapping[str, _Known], first: Collection[str]) -> set[str]:
        """Ask for the logs of jobs that have just ended and of a few others, and read what changed; returns whose."""
        logged: set[str] = set()
        self.operations += _LIST_OPERATIONS
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._paths.logs) as entries:
            logged = {entry.name.removesuffix(".h5") for entry in entries if entry.name.endswith(".h5")}
        others = [job_id for job_id in unsettled if job_id in logged and job_id not in first]
        others.sort(key=lambda job_id: unsettled[job_id].asked)
        asked = {*logged.intersection(first), *others[:_MOST_LOGS]}
        changed = []
        for job_id in asked:
            known, path = unsettled[job_id], self._paths.log(job_id)
            known.asked = self._looks
            signature = self._sign(path)
            if signature != known.signature:
                known.signature = signature
                changed.append((known, path))
        self.operations += len(changed) * file_checks.FILE_OPERATIONS
        with ThreadPoolExecutor() as pool:
            for (known, _), progress in zip(
                changed, pool.map(_progress_of, [path for _, path in changed]), strict=True
            ):
                known.progress = progress
        return asked

    def _status(self, known: _Known, where: QueueState | None, output: Path | None = None) -> JobStatus:
        path = str(self._paths.log(known.job.id))
        if isinstance(known.progress, TimingLogError):
            return JobStatus(known.job.id, "failed", str(known.progress), 0, known.job.trials, None, path)
        return derive(known.job, known.progress, known.submission, where, path, output)

    def _explain(self, ended: Sequence[_Known]) -> None:
        """Say why jobs ended early: in accounting's words, and in their own."""
        early = [job for job in ended if job.submission and job.status and job.status.state in _EARLY]
        numbers = [job.submission.scheduler_id for job in early if job.submission and job.submission.cluster == "slurm"]
        self._endings.update(slurm.endings([number for number in numbers if number not in self._endings]))
        for job in early:
            assert job.submission is not None  # chosen by that
            self.operations += _OUTPUT_OPERATIONS
            ending = QueueState("gone", self._endings.get(job.submission.scheduler_id, ""))
            job.status = self._status(job, ending, output_of(self._paths, job.submission))

    def _sign(self, path: Path) -> Signature:
        """What changes when a file is written anew; None if there is no file."""
        self.operations += 1
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _progress_of(path: Path) -> Progress | TimingLogError:
    try:
        return timing_log.read_progress(path)
    except TimingLogError as error:
        return error


def output_of(paths: StudyPaths, submission: Submission) -> Path | None:
    """The file with what the job printed as errors, if there is one."""
    for name in (f"{submission.scheduler_id}_0_log.err", f"{submission.scheduler_id}_log.err"):
        if (paths.slurm / name).is_file():
            return paths.slurm / name
    return None


def derive(
    job: Job,
    reached: Progress | None,
    submission: Submission | None,
    where: QueueState | None,
    log_path: str,
    output: Path | None = None,
) -> JobStatus:
    """The status of a job by its log and its state in the queue."""
    done, last = (reached.trials_done, reached.last_bandwidth_gbps) if reached else (0, None)

    def status(state: State, detail: str) -> JobStatus:
        return JobStatus(job.id, state, detail, done, job.trials, last, log_path)

    if reached is not None and reached.status == timing_log.COMPLETE:
        return status("complete", f"code {reached.code_changed}" if reached.code_changed else "")
    if where is not None and where.state != "gone":
        return status(where.state, where.detail)
    ending = f" ({where.detail})" if where is not None and where.detail else ""
    for state in ("skipped", "failed"):
        if reached is not None and reached.status == state:
            return status(state, reached.error)
    if reached is not None and reached.status == timing_log.INTERRUPTED:
        return status("interrupted", reached.error + ending)
    if submission is None:
        return status("not submitted", "")
    left = "its log is not finished" if reached else "it left no log"
    last_line = _last_line(output)
    return status(
        "lost",
        f"the job ended{ending} and {left}" + (f"; the last line of its stderr is: {last_line}" if last_line else ""),
    )


def _last_line(output: Path | None) -> str:
    """The last line that a job printed, if possible not srun's: the exception before it says more."""
    try:
        lines = (
            [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()] if output else []
        )
    except OSError:
        return ""
    by_job = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
    return (by_job or lines or [""])[-1]


def missing(statuses: Sequence[JobStatus]) -> set[str]:
    """The jobs that a submission has to send: neither complete, nor in a queue, nor running."""
    return {job.job_id for job in statuses if job.state not in ON_THEIR_WAY | {"complete", "stuck"}}


def summary(statuses: Sequence[JobStatus]) -> str:
    """How many jobs are in which state, in one line."""
    counts = Counter(job.state for job in statuses)
    return f"{len(statuses)} jobs: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())


def table(statuses: Sequence[JobStatus], *, most_rows: int = _MOST_ROWS) -> RenderableType:
    """The jobs for the terminal: all if they are few, else the ones that need attention, then the running ones."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("job")
    shown.add_column("state", no_wrap=True)
    shown.add_column("trials", justify="right", no_wrap=True)
    shown.add_column("last", justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    chosen = list(statuses)
    if len(chosen) > most_rows:
        chosen.sort(key=lambda job: (job.state not in BAD, job.state != "running"))  # stable: the plan's order
        chosen = chosen[:most_rows]
    for job in chosen:
        last = "" if job.last_bandwidth_gbps is None else f"{job.last_bandwidth_gbps:.2f} GB/s"
        state = Text(job.state, style=_STYLES.get(job.state, ""))
        detail = f"{job.detail}; log: {job.log}" if job.state in BAD else job.detail
        shown.add_row(JobId(job.job_id), state, f"{job.trials_done}/{job.trials}", last, Text(printable(detail)))
    hidden = len(statuses) - len(chosen)
    more = f" ({hidden} of them not shown; --json has all)" if hidden else ""
    return Group(shown, Text(summary(statuses) + more))
