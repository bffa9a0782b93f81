"""Submitting a study's jobs and showing on the terminal how they go, until the last has ended."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs import plan_table, submit
from jobs import status as statuses
from jobs.paths import StudyPaths
from jobs.plan import Plan
from jobs.plan_table import wide_console

_POLL_S = 0.5

_LOG_LAG_S = 10
"""How long a job that ended may take until its log is visible here, before it counts as lost."""


def submit_and_follow(paths: StudyPaths, planned: Plan, cluster: submit.ClusterName, *, wait: bool) -> int:
    """Submit the jobs that are missing and follow them until they have ended; on Slurm only if asked to wait.

    Returns:
        The exit code: 1 if a job needs attention.
    """
    missing = statuses.missing(statuses.of_study(paths, planned))
    to_send = [job for job in planned.jobs if job.id in missing]
    console = wide_console()
    console.print(Text(f"{planned.study.name}: {len(to_send)} of {len(planned.jobs)} jobs to run, on {cluster}"))
    console.print(plan_table.notes(planned))
    submitter = submit.Submitter(paths, planned, cluster)
    submitter.submit(to_send)
    if cluster == "slurm" and not wait:
        console.print(Text(f"submitted; follow them with: python -m jobs status {paths.root}"))
        return 0
    try:
        found = follow(console, paths, planned, submitter)
    except KeyboardInterrupt:
        left = "queued jobs stay" if cluster == "slurm" else "the running job is interrupted too, and marks its log"
        again = f"python -m jobs status {paths.root} shows the jobs, and `run` with the same study goes on"
        console.print(Text(f"stopped: {left}. {again}"))
        raise
    console.print(statuses.table(found))
    return 1 if any(each.state not in statuses.GOOD for each in found) else 0


def follow(
    console: Console, paths: StudyPaths, planned: Plan, submitter: submit.Submitter | None
) -> list[statuses.JobStatus]:
    """Start what has to be started here and show all jobs until they have ended.

    A terminal gets a table that changes, anything else a line for each change.
    """
    shown: dict[str, tuple[str, int]] = {}
    settled_s = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            more = submitter.advance() if submitter else False
            started = time.monotonic()
            found = statuses.of_study(paths, planned)
            if console.is_terminal:
                live.update(statuses.table(found, most_rows=max(5, console.height - 4)), refresh=True)
            for each in found if not console.is_terminal else ():
                if shown.get(each.job_id, ("not submitted", 0)) != (each.state, each.trials_done):
                    shown[each.job_id] = (each.state, each.trials_done)
                    console.print(Text(f"{each.job_id}: {each.state}, trial {each.trials_done} of {each.trials}"))
            states = {each.state for each in found}
            if not more and not states & statuses.ON_THEIR_WAY:
                # A shared filesystem may show a job's last log later than Slurm says that the job has ended.
                if "lost" not in states or settled_s >= _LOG_LAG_S:
                    return found
            else:
                settled_s = 0.0
            pause_s = max(_POLL_S, 2 * (time.monotonic() - started))  # a slow answer means a busy controller
            time.sleep(pause_s)
            settled_s += pause_s
