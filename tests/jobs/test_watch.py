"""Watching costs nothing: what a look asks of a filesystem, and how many looks there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import follow, status
from jobs.cluster import slurm
from jobs.cluster.processes import created_unix_s
from jobs.cluster.slurm_states import QueueState
from jobs.cluster.submissions import Submission
from jobs.job_status import JobStatus
from jobs.paths import StudyPaths
from support.watched import Watched

_HOUR_S = 3600.0

_touched: list[str] = []
_listening = [False]


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening[0] and event in {"open", "os.scandir", "os.listdir"}:
        _touched.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else "")


sys.addaudithook(_note)


@contextmanager
def touched(below: Path) -> Iterator[list[str]]:
    """The names of what Python opens and lists below a directory meanwhile, as its audit events say."""
    found: list[str] = []
    _touched.clear()
    _listening[0] = True
    try:
        yield found
    finally:
        _listening[0] = False
        found += [str(Path(name).relative_to(below)) for name in _touched if Path(name).is_relative_to(below)]


@pytest.fixture
def watched(tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths]) -> Callable[..., Watched]:
    """Make a study of so many jobs, of which so many have ended."""
    return lambda jobs, ended: Watched(planned(tiny | {"rounds": jobs}), ended)


def states(found: list[JobStatus]) -> list[tuple[str, int]]:
    """What the test is about of each job."""
    return [(each.state, each.trials_done) for each in found]


def test_a_log_is_read_when_it_has_changed_and_not_again_when_its_job_has_ended(
    watched: Callable[..., Watched],
) -> None:
    """The first look reads each log once, one without news opens none, and one with news opens that one."""
    study = watched(jobs=6, ended=4)
    watch = status.Watch(study.paths, study.plan)
    with touched(study.paths.root) as first:
        found = watch.look()
    with touched(study.paths.root) as second:
        again = watch.look()
    study.log(study.ids[5], "running", trials=2)
    study.log(study.ids[0], "complete", trials=2)  # it has ended: nobody looks any more
    with touched(study.paths.root) as third:
        changed = watch.look()

    assert study.ids == study.log_names(first)
    assert states(found) == states(again) == [("complete", 1)] * 4 + [("running", 1)] * 2
    assert second == ["logs"]
    assert study.log_names(third) == [study.ids[5]]
    assert states(changed) == [("complete", 1)] * 4 + [("running", 1), ("running", 2)]


def test_what_a_look_asks_does_not_grow_with_the_study(watched: Callable[..., Watched]) -> None:
    """Of 120 running jobs whose logs all change, a look reads a bounded number; looks in turn come to all of them."""
    study = watched(jobs=120, ended=0)
    watch = status.Watch(study.paths, study.plan)
    watch.look()
    for job_id in study.ids:
        study.log(job_id, "running", trials=2)
    seen: list[str] = []
    asked = []
    for _ in range(3):
        before = watch.operations
        with touched(study.paths.root) as opened:
            found = watch.look()
        asked.append(watch.operations - before)
        seen += study.log_names(opened)

    assert sorted(seen) == sorted(study.ids)
    assert states(found) == [("running", 2)] * 120
    assert max(asked) < 500


def test_jobs_that_end_are_seen_at_the_next_look(watched: Callable[..., Watched]) -> None:
    """However many end at once; a job that left nothing is lost; submitted again, it is asked for again."""
    study = watched(jobs=120, ended=0)
    watch = status.Watch(study.paths, study.plan)
    watch.look()
    for job_id in study.ids[1:]:
        study.log(job_id, "failed")
    gone = [Submission(each, "local", "999999999", 1.0, "", "") for each in study.ids]
    study.paths.submissions_json.write_text(json.dumps([asdict(each) for each in gone]))
    found = watch.look()
    with touched(study.paths.root) as opened:
        watch.look()
    again = [*gone, replace(gone[5], scheduler_id=str(os.getpid()), process_created_unix_s=created_unix_s(os.getpid()))]
    study.paths.submissions_json.write_text(json.dumps([asdict(each) for each in again]))

    assert states(found) == [("lost", 1)] + [("failed", 1)] * 119
    assert study.log_names(opened) == []
    assert states(watch.look())[5] == ("running", 1)


class Simulated:
    """A clock that only sleeping moves, and what happens at certain times."""

    def __init__(self, events: Mapping[float, Callable[[], None]]) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []
        self._events = dict(events)

    def __call__(self) -> float:
        """The time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.sleeps.append(seconds)
        self.now_s += seconds
        for due in [each for each in self._events if each <= self.now_s]:
            self._events.pop(due)()


def test_looks_in_an_hour(watched: Callable[..., Watched]) -> None:
    """A job that takes an hour is looked at under 250 times, the longer it lasts the more rarely; its end is shown."""
    study = watched(jobs=2, ended=1)
    told = StringIO()
    clock = Simulated(
        {
            1800.0: lambda: study.log(study.ids[1], "running", trials=2),
            _HOUR_S: lambda: study.log(study.ids[1], "complete", trials=3),
        }
    )
    with touched(study.paths.root) as opened:
        found = follow.follow(Console(file=told, width=200), study.paths, study.plan, clock=clock, sleep=clock.sleep)

    assert states(found) == [("complete", 1), ("complete", 3)]
    assert _HOUR_S <= clock.now_s <= _HOUR_S + 30
    assert len(clock.sleeps) < 250
    assert min(clock.sleeps) >= 0.5
    assert max(clock.sleeps) == 30
    assert study.log_names(opened).count(study.ids[1]) <= 4  # at first, twice with news, and once for all
    assert [line.partition(": ")[2] for line in told.getvalue().splitlines() if line.startswith(study.ids[1])] == [
        "running, trial 1 of 3", "running, trial 2 of 3", "complete, trial 3 of 3"
    ]  # fmt: skip


def test_questions_to_slurm(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller is asked seven times in a minute at most, twice on average, however much the logs change."""
    study = watched(jobs=2, ended=0)
    sent = [Submission(each, "slurm", f"17_{number}", 0.0, "", "") for number, each in enumerate(study.ids)]
    study.paths.submissions_json.write_text(json.dumps([asdict(each) for each in sent]))
    asked: list[float] = []
    running = dict.fromkeys(("17_0", "17_1"), QueueState("running", "node7"))
    monkeypatch.setattr(slurm, "queue", lambda *_: asked.append(clock.now_s) or running)
    trials = iter(range(2, 100))
    events = {float(at): lambda: study.log(study.ids[0], "running", trials=next(trials)) for at in range(20, 600, 20)}
    events[600.0] = lambda: study.log(study.ids[0], "complete", trials=3)
    events[1200.0] = lambda: study.log(study.ids[1], "complete", trials=3)
    clock = Simulated(events)
    found = follow.follow(Console(file=StringIO(), width=200), study.paths, study.plan, clock=clock, sleep=clock.sleep)

    assert states(found) == [("complete", 3)] * 2
    assert max(sum(at <= other < at + 60 for other in asked) for at in asked) <= 7
    assert len(asked) <= 5 + 1200 / 30
    assert asked[:2] == [0, 5]  # a job may start at once
    assert any(600 < at <= 635 for at in asked)  # one has ended


def test_what_the_jobs_wait_for_is_shown(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no job runs and the output is no terminal, a line has the reasons, and how many jobs have each."""
    study = watched(jobs=3, ended=0)
    sent = [Submission(each, "slurm", f"17_{number}", 0.0, "", "") for number, each in enumerate(study.ids)]
    study.paths.submissions_json.write_text(json.dumps([asdict(each) for each in sent]))
    reasons = ["ReqNodeNotAvail, Reserved for maintenance", "AssocMaxJobsLimit", "AssocMaxJobsLimit"]
    waiting = {each.scheduler_id: QueueState("waiting", why) for each, why in zip(sent, reasons, strict=True)}
    monkeypatch.setattr(slurm, "queue", lambda *_: waiting)

    def complete() -> None:
        for each in study.ids:
            study.log(each, "complete")

    clock, told = Simulated({100.0: complete}), StringIO()
    follow.follow(Console(file=told, width=200), study.paths, study.plan, clock=clock, sleep=clock.sleep)
    assert [line for line in told.getvalue().splitlines() if line.startswith("waiting: ")] == [
        "waiting: AssocMaxJobsLimit (2 jobs); ReqNodeNotAvail, Reserved for maintenance (1 jobs)"
    ]


def test_a_filesystem_that_hangs_ends_the_command(watched: Callable[..., Watched]) -> None:
    """`status` ends with what hangs and what to do: here a pipe that nobody writes to, instead of a dead server."""
    study = watched(jobs=1, ended=0)
    study.paths.submissions_json.unlink()
    os.mkfifo(study.paths.submissions_json)
    program = "import sys, jobs.status as s; s.Watch.__init__.__kwdefaults__['patience_s'] = 1; "
    program += "from jobs.__main__ import app; app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "status", study.paths.root],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 2
    assert f"error: {study.paths.root} has not answered for 1 s: is the server of /" in done.stderr
    assert f"When `ls {study.paths.root}` answers, repeat the command" in done.stderr


def test_after_a_signal_to_run_alone_the_job_runs_on(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the jobs that still run, and what ends them; or that none does."""
    monkeypatch.setattr(follow, "_TIDY_S", 0.1)
    study = watched(jobs=2, ended=1)
    left = follow._left_running(study.paths, study.plan)
    assert left == f"still running: {study.ids[1]}; to end it: python -m jobs cancel {study.paths.root}"
    study.log(study.ids[1], "complete")
    assert follow._left_running(study.paths, study.plan).startswith("no job is running")


def test_a_log_that_is_not_written_any_more(watched: Callable[..., Watched]) -> None:
    """`status` says of a running job how old its log is, if that is much; and no longer when it is written again."""
    study = watched(jobs=2, ended=1)
    watch = status.Watch(study.paths, study.plan)
    hour_ago_s = time.time() - _HOUR_S - 1
    for job_id in study.ids:
        os.utime(study.paths.log(job_id), (hour_ago_s, hour_ago_s))
    quiet = [job.detail for job in watch.look()]
    study.log(study.ids[1], "running", trials=2)
    news = [job.detail for job in watch.look()]

    assert [detail.partition("; ")[2] for detail in quiet] == ["", "no news for 60 min"]
    assert not any("no news" in detail for detail in news)


def test_a_file_where_the_logs_should_lie(watched: Callable[..., Watched]) -> None:
    """Whoever put it there: jobs without logs are shown as such, and nothing fails."""
    study = watched(jobs=2, ended=0)
    shutil.rmtree(study.paths.logs)
    study.paths.logs.write_text("not a directory")

    assert states(status.Watch(study.paths, study.plan).look()) == [("running", 0)] * 2
