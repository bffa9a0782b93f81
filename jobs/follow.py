"""Submitting a study's jobs and showing on the terminal how they go, until the last has ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs import plan_table
from jobs import status as statuses
from jobs.cluster import orphans, submit
from jobs.cluster.choice import ClusterName
from jobs.cluster.local import LocalRunner, run_in_this_process
from jobs.cluster.one_job import OneJobSender
from jobs.errors import NoAnswerError, SubmissionError
from jobs.job_status import ON_THEIR_WAY, JobStatus
from jobs.paths import StudyPaths
from jobs.plan.plan import Plan
from jobs.terminal import wide_console
from jobs.timing_log import GOOD

_POLL_S = 0.5
_SLURM_POLL_S = 5.0
"""The end of a job shows in its log before Slurm is asked again."""

_QUESTION_S = 30.0
"""Slurm's controller, which has other users, is asked that often; sooner after a change, while questions are left."""

_MOST_QUESTIONS = 5
"""In a row; one comes back every `_QUESTION_S`."""

_HANGING_S = 1800.0
"""How long the results' filesystem may not answer."""

_TIDY_S = 5.0
"""How long a local job may take to end after Ctrl-C, before it is said to run on."""

_MOST_POLL_S = 30.0

_IDLE = 150
"""Times the CPU time of a look, that nothing is done after it: the watcher stays under 1 % of a core."""

_OPERATIONS_PER_MINUTE = 600
"""System calls on the files of the results, whatever the number of jobs; the first look, and ends of jobs, apart."""

_LOG_LAG_S = 10
"""How long a job that ended may take until its log is visible here, before it counts as lost."""


def submit_and_follow(
    paths: StudyPaths, planned: Plan, cluster: ClusterName, *, wait: bool, in_one_job: bool = False
) -> int:
    """Submit the jobs that are missing and follow them until they have ended; on Slurm only if asked to wait.

    Returns:
        The exit code: 1 if a job needs attention.
    """
    missing = statuses.missing(statuses.of_study(paths, planned))
    to_send = [job for job in planned.jobs if job.id in missing]
    console = wide_console()
    console.print(Text(f"{planned.study.name}: {len(to_send)} of {len(planned.jobs)} jobs to run, on {cluster}"))
    console.print(plan_table.notes(planned))
    if cluster == "slurm":
        with _orphans_ended(console, paths):
            sender = (OneJobSender if in_one_job else submit.Sender)(paths, planned, to_send)
            sender.send()
        console.print(Text(_submitted(paths, sender, wait=wait)))
        if not wait:
            return 1 if sender.left else 0
    try:
        if cluster == "slurm":
            with _orphans_ended(console, paths):
                jobs = follow(
                    console, paths, planned,
                    has_ended=lambda jobs: sender.has_ended(sum(job.state in ON_THEIR_WAY for job in jobs)),
                )  # fmt: skip
        elif cluster == "local":
            with LocalRunner(paths, planned, to_send) as runner:
                jobs = follow(console, paths, planned, has_ended=lambda _: runner.has_ended(), sleep=runner.wait)
        else:
            if cluster == "debug":
                run_in_this_process(paths, planned, to_send)
            jobs = follow(console, paths, planned)
    except KeyboardInterrupt:
        left = "queued jobs stay" if cluster == "slurm" else _left_running(paths, planned)
        again = f"python -m jobs status {paths.root} shows the jobs, and `run` with the same study continues it"
        console.print(Text(f"stopped: {left}. {again}"))
        raise
    console.print(statuses.table(jobs))
    return 1 if any(job.state not in GOOD for job in jobs) else 0


def _submitted(paths: StudyPaths, sender: submit.Sender, *, wait: bool) -> str:
    """What went out to Slurm, what didn't and why, and what to type next."""
    lines = [f"{request}" for request in sender.requests if request]
    if sender.left:
        total = sender.sent + len(sender.left)
        lines.append(f"submitted {sender.sent} of {total}; Slurm takes no more now: {sender.refusal}")
        again = "when jobs have ended, type the same command again; `python -m jobs run` sends them by itself"
        lines.append(f"left: {len(sender.left)}; {'they go out as jobs end' if wait else again}")
    elif not wait:
        lines.append("submitted")
    if not wait:
        lines.append(f"follow them with: python -m jobs status {paths.root}")
    return "\n".join(lines)


@contextlib.contextmanager
def _orphans_ended(console: Console, paths: StudyPaths) -> Iterator[None]:
    """Jobs that Slurm queues although their submission fails end: of an earlier submission, and of this one."""
    _end_orphans(console, paths)
    try:
        yield
    except SubmissionError:
        _end_orphans(console, paths, failed_now=True)
        raise


def _end_orphans(console: Console, paths: StudyPaths, *, failed_now: bool = False) -> None:
    with contextlib.suppress(NoAnswerError):
        if ended := orphans.end_orphans(paths, failed_now=failed_now):
            what = "Slurm had queued jobs although their submission failed, and they are cancelled now"
            console.print(Text(f"{what}: {', '.join(ended)}"))


def _left_running(paths: StudyPaths, planned: Plan) -> str:
    """What is true of local jobs after a signal, which may have reached them too, or this process alone."""
    end_s = time.monotonic() + _TIDY_S
    while running := [job.job_id for job in statuses.of_study(paths, planned) if job.state == "running"]:
        if time.monotonic() >= end_s:
            return f"still running: {', '.join(running)}; to end it: python -m jobs cancel {paths.root}"
        time.sleep(_POLL_S)
    return "no job is running; one that was interrupted has marked its log"


def follow(
    console: Console,
    paths: StudyPaths,
    planned: Plan,
    *,
    has_ended: Callable[[Sequence[JobStatus]], bool] = lambda _: True,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[JobStatus]:
    """Show all jobs until they have ended; a terminal gets a table that changes, anything else a line per change.

    Args:
        console: where they are shown.
        paths: of the study.
        planned: the jobs.
        has_ended: whether whatever starts jobs has started the last one, and it has ended; it is given all jobs.
        clock: the time, in s.
        sleep: waits that many seconds, or until `has_ended` may have changed.
    """
    shown: list[JobStatus] = []
    watch, questions = statuses.Watch(paths, planned, patience_s=_HANGING_S), _Questions(clock)
    changed_s = active_s = clock()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            cost = _Cost(watch)
            jobs = watch.look(ask=questions.due())
            more = not has_ended(jobs)
            if watch.news or [job.state for job in jobs] != [job.state for job in shown]:
                questions.answers_may_differ()
            if jobs != shown:
                _show(console, live, shown, jobs)
                shown, changed_s = jobs, clock()
            states = {job.state for job in jobs}
            if more or states & ON_THEIR_WAY:
                active_s = clock()
            # A shared filesystem may show a job's last log later than Slurm says that the job has ended.
            elif "lost" not in states or clock() - active_s >= _LOG_LAG_S:
                watch = statuses.Watch(paths, planned, patience_s=_HANGING_S)  # so as to miss nothing
                jobs = watch.look()
                _show(console, live, shown, jobs)
                if not {job.state for job in jobs} & ON_THEIR_WAY:
                    return jobs
                shown = jobs
            sleep(cost.pause_s(_SLURM_POLL_S if watch.on_slurm else _POLL_S, clock() - changed_s))


class _Cost:
    """What a look takes, from here on; and so how long to wait before the next."""

    def __init__(self, watch: statuses.Watch) -> None:
        self._watch = watch
        self._operations = watch.operations
        self._cpu_s, self._begun_s = _cpu_s(), time.monotonic()

    def pause_s(self, least_s: float, quiet_s: float) -> float:
        """How long to wait; the longer nothing has changed, for `quiet_s` so far, the less a late look matters."""
        operations = self._watch.operations - self._operations
        return min(
            _MOST_POLL_S,
            max(
                least_s,
                quiet_s / 10,
                (_cpu_s() - self._cpu_s) * _IDLE,
                (time.monotonic() - self._begun_s) * 10,  # a slow answer means a busy server
                operations * 60 / _OPERATIONS_PER_MINUTE,
            ),
        )


class _Questions:
    """When to ask Slurm's controller: at first and after a change soon, and on average twice a minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(_MOST_QUESTIONS)
        self._begun_s = self._counted_s = clock()
        self._asked_s = float("-inf")
        self._changed = True

    def answers_may_differ(self) -> None:
        """Something has changed since the last question, or with the answer."""
        self._changed = True

    def due(self) -> bool:
        """Whether to ask now; it counts as asked then."""
        now = self._clock()
        self._left = min(_MOST_QUESTIONS, self._left + (now - self._counted_s) / _QUESTION_S)
        self._counted_s = now
        soon = self._changed or now < self._begun_s + _QUESTION_S
        if self._left < 1 or not (soon or now >= self._asked_s + _QUESTION_S):
            return False
        self._left -= 1
        self._asked_s, self._changed = now, False
        return True


def _cpu_s() -> float:
    """The CPU time of this process and of those that it has waited for, such as squeue."""
    return sum(os.times()[:4])


def _show(console: Console, live: Live, before: Sequence[JobStatus], jobs: Sequence[JobStatus]) -> None:
    if console.is_terminal:
        live.update(statuses.table(jobs, most_rows=max(5, console.height - 4)), refresh=True)
        return
    known = {job.job_id: (job.state, job.trials_done) for job in before}
    for job in jobs:
        if known.get(job.job_id, ("not submitted", 0)) != (job.state, job.trials_done):
            console.print(Text(f"{job.job_id}: {job.state}, {job.part} {job.trials_done} of {job.trials}"))
    if (held_up := _held_up(jobs)) and held_up != _held_up(before):
        console.print(Text(held_up))


def _held_up(jobs: Sequence[JobStatus]) -> str:
    """What the jobs wait for, if none runs."""
    reasons = Counter(job.detail for job in jobs if job.state in {"waiting", "ending", "unknown"} and job.detail)
    if not reasons or any(job.state == "running" for job in jobs):
        return ""
    return "waiting: " + "; ".join(f"{reason} ({number} jobs)" for reason, number in reasons.most_common())
