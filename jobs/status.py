"""The state of every job of a study, from its log and from the queue of the cluster."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckpt.cli import printable
from jobs import timing_log
from jobs.cluster import queue_state, slurm
from jobs.cluster.slurm_states import GONE, Ending, QueueState
from jobs.cluster.submissions import Submission, submissions
from jobs.hanging import LOOK_S, bounded
from jobs.job_status import BAD, ON_THEIR_WAY, JobStatus, derive
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan
from jobs.terminal import JobId
from jobs.timing_log import Progress, TimingLogError, file_checks

_ENDED = frozenset({"skipped", "failed", "interrupted"})
"""States that a job which is gone stays in."""

_EARLY = frozenset({"interrupted", "ending", "lost"})
"""States of a job that is gone, of which Slurm may know more."""

_MOST_LOGS = 50
"""Of jobs under way, that one look asks for."""

# What they take in system calls.
_LIST_OPERATIONS = 5
_READ_OPERATIONS = 5
_OUTPUT_OPERATIONS = 6

T = TypeVar("T")

Signature = tuple[int, ...] | None

_STYLES: Mapping[str, str] = {"complete": "green", "running": "cyan"} | dict.fromkeys(BAD, "bold red")

_MOST_ROWS = 40
"""A terminal's table shows so many jobs, the ones that need attention first."""


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
    quiet_since_s: float = 0.0
    """When its log was written, by `time.monotonic`: a calendar that is set back is no news from a job."""
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

    def __init__(self, paths: StudyPaths, plan: Plan, *, patience_s: float = LOOK_S) -> None:
        self._paths, self._patience_s = paths, patience_s
        self._jobs = {job.id: _Known(job) for job in plan.jobs}
        self._submissions: Signature = None
        self._queue: dict[str, QueueState] = {}
        """What the cluster last answered about every submitted job, by its number there."""
        self._endings: dict[str, Ending] = {}
        self._ended_seen_s: dict[str, float] = {}
        """When this saw that jobs had ended, by `time.monotonic`."""
        self._looks = 0
        self.operations = 0
        """System calls on the files of the results so far."""
        self.news = False
        """Whether the last look found a log of a job that has begun or ended since the queue was last asked for it."""

    def look(self, *, ask: bool = True) -> list[JobStatus]:
        """The status of every planned job; Slurm is asked if `ask`, and otherwise for jobs that are new only."""
        self._looks += 1
        self._patiently(self._read_submissions)
        unsettled = {job_id: job for job_id, job in self._jobs.items() if not job.settled}
        where = self._where([job.submission for job in unsettled.values() if job.submission], ask=ask)
        gone = {job_id for job_id in unsettled if job_id not in where or where[job_id].state == "gone"}
        just_ended = {job_id for job_id in gone if unsettled[job_id].on_its_way}
        shared = {number for number, jobs in Counter(self._numbers()).items() if jobs > 1}
        looked_at = self._patiently(lambda: self._read_logs(unsettled, just_ended)) | just_ended
        for job_id, job in unsettled.items():
            if job_id in looked_at or job_id not in gone:
                job.status = self._status(job, _in_its_turn(job, where.get(job_id), shared))
                job.settled = job.status.state == "complete" or (job_id in gone and job.status.state in _ENDED)
        self._explain({job_id: where.get(job_id, GONE) for job_id in looked_at & gone})
        return [job.status for job in self._jobs.values() if job.status]

    @property
    def on_slurm(self) -> bool:
        """Whether looks ask Slurm."""
        return any(
            job.submission and job.submission.cluster == "slurm" for job in self._jobs.values() if not job.settled
        )

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do what asks the results' filesystem, which may hang."""
        return bounded(self._paths.root, work, limit_s=self._patience_s)

    def _where(self, sent: Sequence[Submission], *, ask: bool) -> Mapping[str, QueueState]:
        """Where jobs are, or were when Slurm was last asked."""
        due = [job for job in sent if ask or job.cluster != "slurm" or job.scheduler_id not in self._queue]
        now = queue_state.of(due)
        self._queue.update({job.scheduler_id: now[job.job_id] for job in due})
        return {job.job_id: self._queue[job.scheduler_id] for job in sent}

    def _numbers(self) -> Iterator[str]:
        """The number that every submitted job has on Slurm; jobs that run in one have the same."""
        sent = (job.submission for job in self._jobs.values() if job.submission)
        return (job.scheduler_id for job in sent if job.cluster == "slurm")

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
                age_s = time.time() - signature[0] / 1e9 if signature and not known.signature else 0.0
                known.quiet_since_s = time.monotonic() - max(age_s, 0.0)
                known.signature = signature
                changed.append((known, path))
        self.operations += len(changed) * file_checks.FILE_OPERATIONS
        with ThreadPoolExecutor() as pool:
            for (known, _), progress in zip(
                changed, pool.map(_progress_of, [path for _, path in changed]), strict=True
            ):
                known.progress = progress
        self.news = any(self._has_moved(known) for known, _ in changed)
        return asked

    def _has_moved(self, known: _Known) -> bool:
        """Whether a job's log shows that it is elsewhere than its cluster answered."""
        if known.submission is None or isinstance(known.progress, TimingLogError) or known.progress is None:
            return False
        running = self._queue.get(known.submission.scheduler_id, GONE).state == "running"
        return running != (known.progress.status == timing_log.RUNNING)

    def _status(
        self, known: _Known, where: QueueState | None, ending: Ending | None = None, output: Path | None = None
    ) -> JobStatus:
        path = str(self._paths.log(known.job.id))
        if isinstance(known.progress, TimingLogError):
            return JobStatus(
                known.job.id, "failed", str(known.progress), 0, known.job.parts, None, path, known.job.part
            )
        ended_s = 0.0
        if ending and known.submission:
            now_s = time.monotonic()
            seen_s = self._ended_seen_s.setdefault(known.submission.scheduler_id, now_s)
            ended_s = max(now_s - seen_s, time.time() - ending.ended_unix_s if ending.ended_unix_s else 0.0)
        return derive(
            known.job, known.progress, known.submission, where, path, ending=ending, ended_s=ended_s,
            quiet_s=time.monotonic() - known.quiet_since_s if known.signature else 0.0, output=output,
        )  # fmt: skip

    def _explain(self, ended: Mapping[str, QueueState]) -> None:
        """Say why jobs ended early: in accounting's words, or the queue's, and in their own."""
        jobs = [self._jobs[job_id] for job_id in ended]
        early = [job for job in jobs if job.submission and job.status and job.status.state in _EARLY]
        numbers = [job.submission.scheduler_id for job in early if job.submission and job.submission.cluster == "slurm"]
        self._endings.update(slurm.endings([number for number in numbers if number not in self._endings]))
        for job in early:
            assert job.submission is not None  # chosen by that
            self.operations += _OUTPUT_OPERATIONS
            queued = ended[job.job.id].detail
            ending = self._endings.get(job.submission.scheduler_id, Ending(queued, queued) if queued else None)
            job.status = self._patiently(partial(self._ended, job, ended[job.job.id], ending))

    def _ended(self, job: _Known, where: QueueState, ending: Ending | None) -> JobStatus:
        assert job.submission is not None
        return self._status(job, where, ending, output_of(self._paths, job.submission))

    def _sign(self, path: Path) -> Signature:
        """What changes when a file is written anew; None if there is no file."""
        self.operations += 1
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _in_its_turn(known: _Known, where: QueueState | None, shared: Collection[str]) -> QueueState | None:
    """Where a job is that runs in one with others, one after the other: its log says whether its turn has come."""
    sent = known.submission
    if sent is None or where is None or where.state != "running" or sent.scheduler_id not in shared:
        return where
    if isinstance(known.progress, Progress) and known.signature:
        if known.progress.status == timing_log.RUNNING:
            return where
        if known.signature[0] / 1e9 >= datetime.fromisoformat(sent.submitted_utc).timestamp():
            return GONE
    return QueueState("waiting", f"its turn comes in job {sent.scheduler_id}, on {where.detail}")


def _progress_of(path: Path) -> Progress | TimingLogError:
    try:
        return timing_log.read_progress(path)
    except TimingLogError as error:
        return error


def output_of(paths: StudyPaths, submission: Submission) -> Path | None:
    """The file with what the job printed as errors, if there is one."""
    number = submission.scheduler_id
    for name in (f"{number}_{submission.job_id}.err", f"{number}_0_log.err", f"{number}_log.err"):
        if (paths.slurm / name).is_file():
            return paths.slurm / name
    return None


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
    shown.add_column(" and ".join(sorted({f"{job.part}s" for job in statuses})), justify="right", no_wrap=True)
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
