"""A clock that is set back by a day: durations, the order in a log, and how long a job has been silent don't show it.

The calendar is a mock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest

from jobs import status
from jobs.cluster import queue_state, submissions
from jobs.node.clock import Clock
from jobs.paths import StudyPaths
from support.one_job import only_job, run_only
from support.set_back import DAY_S, SetBack
from support.watched import Watched

Planned = Callable[[Mapping[str, Any]], StudyPaths]


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> SetBack:
    """What every module reads."""
    return SetBack(monkeypatch)


def test_a_job_that_goes_on(tiny: dict[str, Any], planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials follow those that the log has, and last as long as they lasted."""
    paths = planned(tiny)
    log = run_only(paths)
    log.header.status, log.samples = "running", log.samples[:6]
    log.write(paths.log(only_job(paths).id))
    ended_s, began_s = log.end_s(), time.perf_counter()

    SetBack(monkeypatch)
    continued = run_only(paths)
    longest_s = time.perf_counter() - began_s
    assert continued.header.clock_zero_unix_s == log.header.clock_zero_unix_s
    added = continued.samples[6:]
    assert added
    assert all(ended_s <= sample.start_s <= ended_s + longest_s for sample in added)
    assert all(0 <= sample.duration_s <= longest_s for sample in added)


def test_a_clock_that_goes_on(calendar: SetBack) -> None:
    """It begins at the last time in the log, if the calendar is before that; else at the calendar's."""
    assert 100 <= Clock(calendar.now_s, 100)() < 200
    assert 3 * DAY_S <= Clock(calendar.now_s - 4 * DAY_S, 100)() < 3 * DAY_S + 100


def test_a_local_job(planned: Planned, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, though the kernel now answers that its process started a day earlier; another process doesn't."""
    paths = planned(tiny)
    submissions.record(paths, "local", [("job", str(os.getpid()))], "1")
    (sent,) = submissions.submissions(paths)
    created = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) - DAY_S)
    assert queue_state.of([sent])["job"].state == "running"
    later = replace(sent, process_created_s=sent.process_created_s - 1)
    assert queue_state.of([later])["job"].state == "gone"


def test_a_silent_job(
    tiny: dict[str, Any], planned: Planned, calendar: SetBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that hangs is shown, though its log seems to have been written tomorrow; news from it end that."""
    study = Watched(planned(tiny), ended=0)
    watch = status.Watch(study.paths, study.plan)
    (job,) = watch.look()
    assert (job.state, job.detail.partition("; ")[2]) == ("running", "")
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3600)
    (job,) = watch.look()
    assert job.detail.partition("; ")[2] == "no news for 60 min"
    study.log(job.job_id, "running", trials=2)
    (job,) = watch.look()
    assert job.detail.partition("; ")[2] == ""
    assert calendar.readings
