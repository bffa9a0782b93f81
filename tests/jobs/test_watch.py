"""Watching costs nothing: what a look asks of a filesystem, and how many looks there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import pytest
from rich.console import Console

from jobs import follow, status, timing_log
from jobs.cluster import slurm
from jobs.cluster.processes import created_unix_s
from jobs.cluster.slurm_states import QueueState
from jobs.cluster.submissions import Submission
from jobs.errors import TimingLogError
from jobs.job_status import JobStatus
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.plan.plan import Plan
from jobs.timing_log import Sample, TimingLog, reading
from jobs.timing_log.seal import sealed
from support.logs import header_of, job

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


def log_of(job_id: str, of: str, *, trials: int = 1, study: str = "tiny") -> TimingLog:
    """A log with so many finished trials of 3e9 bytes on two ranks: loaded in 2 s, the second rank a second later."""
    header = header_of(job("torch_save", "here"), study=study, job_id=job_id, status=of)
    samples = [
        Sample(
            trial=trial, warmup=False, rank=rank, operation=operation, phase=phase, start_s=rank, duration_s=2,
            state_bytes=1_500_000_000, durability="n/a", cache="cold", resident_fraction=0, cpu_s=0, peak_rss_bytes=0,
            valid=True, reason="",
        )
        for trial in range(trials) for operation, phase in (("save", "call"), ("save", "total"), ("load", "total"))
        for rank in range(2)
    ]  # fmt: skip
    return TimingLog(header=header, samples=samples, provenance={"code_version": "1", "code_version_submitted": "2"})


class Watched:
    """A study of which some jobs have ended, and the others run: all of them in this process."""

    def __init__(self, paths: StudyPaths, ended: int) -> None:
        self.paths = paths
        self._images: dict[tuple[str, int], bytes] = {}
        self.plan: Plan = plan.from_json(paths.plan_json.read_text(), "plan.json")
        self.ids = [job.id for job in self.plan.jobs]
        for number, job_id in enumerate(self.ids):
            self.log(job_id, "complete" if number < ended else "running")
        self.submit(*self.ids[ended:])

    def log(self, job_id: str, of: str, trials: int = 1) -> None:
        """Write a job's log as a job does, but for syncing it; the same for all jobs."""
        if (of, trials) not in self._images:
            path = self.paths.root / "log"
            log_of("j", of, trials=trials).write(path)
            self._images[of, trials] = path.read_bytes()
        partial = self.paths.log(job_id).with_suffix(".partial")
        partial.write_bytes(self._images[of, trials])
        partial.replace(self.paths.log(job_id))

    def submit(self, *job_ids: str) -> None:
        """Say that these are jobs of the local cluster, which run as long as this process does."""
        sent = [Submission(each, "local", str(os.getpid()), created_unix_s(os.getpid()), "", "") for each in job_ids]
        self.paths.submissions_json.write_text(json.dumps([asdict(each) for each in sent]))

    def log_names(self, opened: list[str]) -> list[str]:
        """The jobs whose logs are among what was opened."""
        return sorted(Path(name).stem for name in opened if name.endswith(".h5"))


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
        timeout=60,
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
    assert left == f"{study.ids[1]} still runs; if it should not, python -m jobs cancel {study.paths.root}"
    study.log(study.ids[1], "complete")
    assert follow._left_running(study.paths, study.plan).startswith("no job runs")


def test_the_note_in_a_log_is_what_the_whole_log_adds_up_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With trials or without: the same status, trials and bandwidth; and HDF5 isn't needed."""
    path = tmp_path / "log.h5"
    for trials in (0, 1, 3):
        log_of("j", "running", trials=trials).write(path)
        whole = timing_log.read(path).progress()
        with monkeypatch.context() as without_hdf5:
            without_hdf5.delattr(reading, "opened")
            found = timing_log.read_progress(path)

        assert found == whole
        assert (found.status, found.trials_done) == ("running", trials)
        assert found.last_bandwidth_gbps == (1.0 if trials else None)
        assert found.code_changed == "submitted with 2, run with 1"


def test_progress_of_a_log_without_a_note(tmp_path: Path) -> None:
    """Of an earlier release, of another writer, with an error that is longer than the block: what all of it says."""
    path, ours = tmp_path / "other.h5", tmp_path / "ours.h5"
    log = log_of("j", "failed", trials=2)
    log.write(ours)
    noted = timing_log.read_progress(ours)

    path.write_bytes(sealed(ours.read_bytes()[512:]))  # as an earlier release
    assert timing_log.read_progress(path) == noted
    with h5py.File(path, "w") as file:
        log.write_to(file)
    assert timing_log.read_progress(path) == noted
    log.header.error = "long " * 1000
    log.write(path)
    assert timing_log.read_progress(path) == replace(noted, error=log.header.error)


def test_progress_of_a_damaged_log(tmp_path: Path) -> None:
    """One flipped bit, in the seal, the note or behind them, or a missing end: an error that names the log."""
    path = tmp_path / "log.h5"
    log_of("j", "complete", trials=2).write(path)
    whole = path.read_bytes()
    block = len(whole[:512].rstrip(b"\0"))
    for place in (*range(0, block, 7), block - 1, block, 511, 512, 5000, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TimingLogError, match=r"log\.h5"):
            timing_log.read_progress(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(TimingLogError, match="damaged"):
        timing_log.read_progress(path)


def test_a_file_where_the_logs_should_lie(watched: Callable[..., Watched]) -> None:
    """Whoever put it there: jobs without logs are shown as such, and nothing fails."""
    study = watched(jobs=2, ended=0)
    shutil.rmtree(study.paths.logs)
    study.paths.logs.write_text("not a directory")

    assert states(status.Watch(study.paths, study.plan).look()) == [("running", 0)] * 2
