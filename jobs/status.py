"""What has become of every job of a study: from its log, and from where the cluster says it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.paths import StudyPaths
from jobs.plan import Job, Plan
from jobs.submit import Submission, Whereabouts, submissions, whereabouts
from jobs.timing_log import TimingLog

State = Literal["not submitted", "waiting", "running", "complete", "failed", "interrupted", "lost"]

_STYLES: Mapping[str, str] = {
    "complete": "green",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "bold red",
    "lost": "bold red",
}


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

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in {"complete", "failed", "interrupted", "lost"}


def of_study(paths: StudyPaths, plan: Plan) -> list[JobStatus]:
    """The status of every planned job."""
    sent = submissions(paths)
    where = whereabouts(sent)
    by_job: dict[str, Submission] = {each.job_id: each for each in sent}
    return [_of_job(paths, job, by_job.get(job.id), where.get(job.id)) for job in plan.jobs]


def _of_job(paths: StudyPaths, job: Job, submission: Submission | None, where: Whereabouts | None) -> JobStatus:
    try:
        log = timing_log.read(paths.log(job.id)) if paths.log(job.id).exists() else None
    except TimingLogError as error:
        return JobStatus(job.id, "failed", str(error), 0, job.trials, None)
    return derive(job, log, submission, where, str(paths.slurm))


def derive(
    job: Job,
    log: TimingLog | None,
    submission: Submission | None,
    where: Whereabouts | None,
    output_directory: str,
) -> JobStatus:
    """The status that a log and a cluster's word add up to. Pure."""
    totals = [s for s in log.samples if s.phase == "total"] if log else []
    done = len({s.trial for s in totals})
    last = totals[-1].state_bytes / totals[-1].duration_s / 1e9 if totals and totals[-1].duration_s > 0 else None
    alive = where is not None and where.state != "gone"

    def status(state: State, detail: str) -> JobStatus:
        return JobStatus(job.id, state, detail, done, job.trials, last)

    if log is not None and log.header.status == timing_log.COMPLETE:
        return status("complete", "")
    if where is not None and alive:
        return status("waiting" if where.state == "waiting" else "running", where.detail)
    if log is not None and log.header.status == timing_log.FAILED:
        return status("failed", log.header.error)
    if log is not None and log.header.status == timing_log.INTERRUPTED:
        return status("interrupted", log.header.error)
    if submission is None:
        return status("not submitted", "")
    left = "its log is not finished" if log else "it left no log"
    return status("lost", f"the job is gone and {left}; its output is in {output_directory}")


def missing(statuses: Sequence[JobStatus]) -> set[str]:
    """The jobs that a submission has to send: neither complete nor on their way."""
    return {each.job_id for each in statuses if each.state not in {"complete", "waiting", "running"}}


def table(statuses: Sequence[JobStatus]) -> Table:
    """All jobs, for the terminal."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("job", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column("trials", justify="right")
    shown.add_column("last", justify="right")
    shown.add_column("", overflow="fold")
    for each in statuses:
        last = "" if each.last_bandwidth_gbps is None else f"{each.last_bandwidth_gbps:.2f} GB/s"
        state = Text(each.state, style=_STYLES.get(each.state, ""))
        shown.add_row(Text(each.job_id), state, f"{each.trials_done}/{each.trials}", last, Text(each.detail))
    return shown
