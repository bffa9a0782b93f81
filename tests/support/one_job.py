"""The one job of a study: run in this process, and the log that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobs import timing_log
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.timing_log import TimingLog

Planned = Callable[[Mapping[str, Any]], StudyPaths]


def only_job(paths: StudyPaths) -> plan.Job:
    """The job of a study of one."""
    (job,) = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    return job


def run_only(paths: StudyPaths) -> TimingLog:
    """Run the job of a study of one, and read its log."""
    job = only_job(paths)
    status = run_job(str(paths.root), job.id)
    log = timing_log.read(paths.log(job.id))
    assert status == log.header.status
    return log
