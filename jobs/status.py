"""What has become of every job of a study: from its log, and from where the cluster says it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs import timing_log, whereabouts
from jobs.errors import TimingLogError
from jobs.paths import StudyPaths
from jobs.plan import Job, Plan
from jobs.provenance import version_changed
from jobs.submit import Submission, submissions
from jobs.timing_log import Sample, TimingLog
from jobs.whereabouts import Whereabouts

State = Literal[
    "not submitted", "waiting", "running", "unknown", "stuck", "complete", "skipped", "failed", "interrupted", "lost"
]

GOOD = frozenset({"complete", "skipped"})
"""States of jobs that did what they could; a skipped one is tried again, since a library may be there by then."""

ON_THEIR_WAY = frozenset({"waiting", "running", "unknown"})
"""States that change by themselves."""

BAD = frozenset({"failed", "interrupted", "lost", "stuck"})
"""States that somebody has to look at."""

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
    sent = submissions(paths)
    where = whereabouts.of(sent)
    latest: dict[str, Submission] = {each.job_id: each for each in sent}
    logged = {path.stem for path in paths.logs.glob("*.h5")} if paths.logs.is_dir() else set()

    def one(job: Job) -> JobStatus:
        log: TimingLog | None = None
        path = paths.log(job.id)
        if job.id in logged:
            try:
                log = timing_log.read(path)
            except TimingLogError as error:
                return JobStatus(job.id, "failed", str(error), 0, job.trials, None, str(path))
        submission = latest.get(job.id)
        output = output_of(paths, submission) if submission else None
        return derive(job, log, submission, where.get(job.id), str(path), output)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, plan.jobs))


def output_of(paths: StudyPaths, submission: Submission) -> Path | None:
    """The file with what the job printed as errors, if there is one."""
    for name in (f"{submission.scheduler_id}_0_log.err", f"{submission.scheduler_id}_log.err"):
        if (paths.slurm / name).is_file():
            return paths.slurm / name
    return None


def derive(
    job: Job,
    log: TimingLog | None,
    submission: Submission | None,
    where: Whereabouts | None,
    log_path: str,
    output: Path | None = None,
) -> JobStatus:
    """The status that a log and a cluster's word add up to."""
    totals = [s for s in log.samples if s.phase == "total"] if log else []
    done = len({s.trial for s in totals})
    last = _bandwidth_gbps(totals)

    def status(state: State, detail: str) -> JobStatus:
        return JobStatus(job.id, state, detail, done, job.trials, last, log_path)

    if log is not None and log.header.status == timing_log.COMPLETE:
        changed = version_changed(log.provenance)
        return status("complete", f"code {changed}" if changed else "")
    if where is not None and where.state != "gone":
        return status(where.state, where.detail)
    ending = f" ({where.detail})" if where is not None and where.detail else ""
    for said in ("skipped", "failed"):
        if log is not None and log.header.status == said:
            return status(said, log.header.error)
    if log is not None and log.header.status == timing_log.INTERRUPTED:
        return status("interrupted", log.header.error + ending)
    if submission is None:
        return status("not submitted", "")
    left = "its log is not finished" if log else "it left no log"
    said = _last_line(output)
    return status("lost", f"the job ended{ending} and {left}" + (f"; its last words: {said}" if said else ""))


def _bandwidth_gbps(totals: Sequence[Sample]) -> float | None:
    """Of the last operation, from the first rank's start to the last one's end."""
    if not totals:
        return None
    last = totals[-1]
    same = [s for s in totals if (s.trial, s.operation, s.cache) == (last.trial, last.operation, last.cache)]
    duration_s = max(s.start_s + s.duration_s for s in same) - min(s.start_s for s in same)
    return sum(s.state_bytes for s in same) / duration_s / 1e9 if duration_s > 0 else None


def _last_line(output: Path | None) -> str:
    """What a job printed last, if possible by itself: srun's own line says less than the exception before it."""
    try:
        lines = (
            [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()] if output else []
        )
    except OSError:
        return ""
    own = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
    return (own or lines or [""])[-1]


def missing(statuses: Sequence[JobStatus]) -> set[str]:
    """The jobs that a submission has to send: neither complete, nor in a queue, nor running."""
    return {each.job_id for each in statuses if each.state not in ON_THEIR_WAY | {"complete", "stuck"}}


def summary(statuses: Sequence[JobStatus]) -> str:
    """How many jobs are in which state, in one line."""
    counts = Counter(each.state for each in statuses)
    return f"{len(statuses)} jobs: " + ", ".join(f"{number} {state}" for state, number in counts.most_common())


def table(statuses: Sequence[JobStatus], *, most_rows: int = _MOST_ROWS) -> RenderableType:
    """The jobs for the terminal: all if they are few, else the ones that need attention, then the running ones."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("job", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column("trials", justify="right", no_wrap=True)
    shown.add_column("last", justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    chosen = list(statuses)
    if len(chosen) > most_rows:
        chosen.sort(key=lambda each: (each.state not in BAD, each.state != "running"))  # stable: the plan's order
        chosen = chosen[:most_rows]
    for each in chosen:
        last = "" if each.last_bandwidth_gbps is None else f"{each.last_bandwidth_gbps:.2f} GB/s"
        state = Text(each.state, style=_STYLES.get(each.state, ""))
        detail = f"{each.detail}; log: {each.log}" if each.state in BAD else each.detail
        shown.add_row(Text(each.job_id), state, f"{each.trials_done}/{each.trials}", last, Text(detail))
    hidden = len(statuses) - len(chosen)
    more = f" ({hidden} of them not shown; --json has all)" if hidden else ""
    return Group(shown, Text(summary(statuses) + more))
