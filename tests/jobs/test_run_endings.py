"""A job that is killed or interrupted: what its log holds, and that another run goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ckpt import registry, strategies
from jobs import timing_log
from jobs.paths import StudyPaths
from support.one_job import Planned, only_job, run_only

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def gated(tiny: dict[str, Any], planned: Planned, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    """A study of a warm-up and three trials, with a strategy that can be made to wait."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(Path(__file__).parent / "strategies")])
    monkeypatch.setattr(registry, "_own_names", lambda: frozenset({"gated"}))
    tiny["strategies"] = ["gated"]
    tiny["trials"] = {"repeats": 3, "warmups": 1}
    return planned(tiny)


def end_in_a_save(python: Any, paths: StudyPaths, tmp_path: Path, number: signal.Signals, *, after: int) -> int:
    """Start the job, wait until it is in the save after so many others, send a signal; the exit code."""
    reached = tmp_path / "reached"
    arguments = ["-m", "jobs", "job", paths.root, only_job(paths).id]
    process = python.start(*arguments, GATE_AFTER=str(after), GATE_REACHED=str(reached))
    try:
        while not reached.exists():
            assert process.poll() is None, "the job ended before it got there"
            time.sleep(0.02)
        process.send_signal(number)
        return int(process.wait(timeout=600))
    finally:
        process.kill()


def test_killed(gated: StudyPaths, python: Any, target: Path, tmp_path: Path) -> None:
    """A job that is killed leaves a log that opens, says `running`, and holds every finished trial.

    Run again, the job does the trials that are missing, and takes away what it had left on the target.
    """
    assert end_in_a_save(python, gated, tmp_path, signal.SIGKILL, after=2) == -signal.SIGKILL

    log = timing_log.read(gated.log(only_job(gated).id))
    assert (log.header.status, log.header.error) == ("running", "")
    assert [s.trial for s in log.samples] == [0] * 6 + [1] * 6
    assert len(list(target.iterdir())) == 1, "the half of a checkpoint that it was writing"

    continued = run_only(gated)
    assert continued.header.status == "complete"
    assert repr(log.samples) == repr(continued.samples[:12])
    assert [(s.trial, s.warmup) for s in continued.samples[12:]] == [(2, True)] * 6 + [(3, False)] * 6 + [
        (4, False)
    ] * 6
    assert log.samples[-1].start_s < continued.samples[12].start_s
    assert list(target.iterdir()) == []


def test_interrupted_before_anything_was_measured(gated: StudyPaths, python: Any, target: Path, tmp_path: Path) -> None:
    """A job that gets SIGTERM logs the signal, leaves nothing on the target, and exits with 75: run it again."""
    assert end_in_a_save(python, gated, tmp_path, signal.SIGTERM, after=0) == 75

    log = timing_log.read(gated.log(only_job(gated).id))
    assert log.header.status == "interrupted"
    assert "SIGTERM" in log.header.error
    assert log.samples == []
    assert list(target.iterdir()) == []


def test_ctrl_c(tmp_path: Path, model: Path, target: Path) -> None:
    """In a terminal it reaches the run, submitit's controller and the job: the log has it; no traceback."""
    study = tmp_path / "stopped.toml"
    study.write_text(
        f'name = "stopped"\nstrategies = ["torch_save"]\n[state]\nmodel = "{model}"\n[targets.here]\n'
        f'path = "{target}"\nallow_tmpfs = true\n[trials]\nrepeats = 100000\n'
    )
    log = tmp_path / "stopped" / "logs" / "r01-torch_save-here-1x1.h5"
    heeding = ["env", "--default-signal=INT"]  # a test run in the background ignores it, and so would the program
    with subprocess.Popen(
        [*heeding, sys.executable, "-m", "jobs", "run", study, "--cluster", "local", "--results", tmp_path],
        cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while not (log.exists() and timing_log.read(log).samples):
            assert run.poll() is None
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate()
    assert ("", 130) == (errors, run.returncode)
    assert "stopped: no job is running; one that was interrupted has marked its log" in output
    read = timing_log.read(log)
    assert ("interrupted", "interrupted (SIGINT)") == (read.header.status, read.header.error)
    assert list(target.iterdir()) == []
