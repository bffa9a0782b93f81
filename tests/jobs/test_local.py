"""Jobs on this machine, and the list of what went out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log
from jobs.cluster import local
from jobs.cluster.local import LocalRunner
from jobs.cluster.submissions import submissions
from jobs.errors import SubmissionError
from jobs.paths import StudyPaths
from jobs.plan import plan
from support.waiting import until

COUNT = 60

_RECORD = """
import sys
from pathlib import Path
from jobs.cluster.submissions import record
from jobs.paths import StudyPaths

paths = StudyPaths(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    record(paths, "slurm", [(f"{sys.argv[2]}-{number}", str(number))], "1")
"""


def test_two_processes_submit_at_once(tmp_path: Path) -> None:
    """The list of submissions has what both of them recorded."""
    paths = StudyPaths(tmp_path)
    paths.slurm.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", _RECORD, str(tmp_path), name, str(COUNT)]) for name in ("a", "b")
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]

    ids = {submission.job_id for submission in submissions(paths)}
    assert ids == {f"{name}-{number}" for name in ("a", "b") for number in range(COUNT)}


class FakeJob:
    """A job that ends when a test says so."""

    job_id = "999999999"

    def __init__(self) -> None:
        self.has_ended = False

    def done(self) -> bool:
        """Whether it has ended."""
        return self.has_ended


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeJob]:
    """The jobs that were started, none of them really."""
    jobs: list[FakeJob] = []

    def start(*_: Any) -> FakeJob:
        jobs.append(FakeJob())
        return jobs[-1]

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "_POLL_S", 0.01)
    return jobs


def test_jobs_run_one_after_the_other_whoever_watches(
    started: list[FakeJob], tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths]
) -> None:
    """A job starts when the one before has ended, though nobody looks; it has ended when the last one has."""
    paths = planned(tiny | {"rounds": 2})
    jobs = plan.from_json(paths.plan_json.read_text(), "plan.json")
    with LocalRunner(paths, jobs, jobs.jobs) as runner:
        until(lambda: len(started) == 1)
        runner.wait(0.05)
        assert (len(started), runner.has_ended()) == (1, False)
        started[0].has_ended = True
        until(lambda: len(started) == 2)
        assert not runner.has_ended()
        started[1].has_ended = True
        until(runner.has_ended)


def test_what_keeps_a_job_from_starting_reaches_the_watcher(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths]
) -> None:
    """An error in the background ends the run with that error."""

    def refuse(*_: Any) -> None:
        raise SubmissionError("no room")

    monkeypatch.setattr(local, "_start", refuse)
    paths = planned(tiny)
    jobs = plan.from_json(paths.plan_json.read_text(), "plan.json")
    with pytest.raises(SubmissionError, match="no room"), LocalRunner(paths, jobs, jobs.jobs) as runner:
        until(runner.has_ended)


@pytest.mark.parametrize(("seen", "expected"), [(None, "[all]"), ("", "[]"), ("0,GPU-1", "[0,GPU-1]")])
def test_a_job_sees_the_gpus_that_its_user_sees(
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Any],
    planned: Callable[[Mapping[str, Any]], StudyPaths],
    seen: str | None,
    expected: str,
) -> None:
    """A training step of the user's own runs on them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    tiny["targets"]["here"]["prepare"] = """sh -c 'echo "[${CUDA_VISIBLE_DEVICES-all}]"'"""
    paths = planned(tiny)
    jobs = plan.from_json(paths.plan_json.read_text(), "plan.json")
    with LocalRunner(paths, jobs, jobs.jobs) as runner:
        until(runner.has_ended)
    [hook] = timing_log.read(paths.log(jobs.jobs[0].id)).hooks
    assert expected == hook.output
