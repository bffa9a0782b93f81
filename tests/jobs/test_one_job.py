"""A study in one Slurm job: the script that runs its jobs one after the other, with a stand-in for srun."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.one_job import OneJobSender
from jobs.errors import SubmissionError
from jobs.paths import StudyPaths
from jobs.plan import plan
from support.commands import Commands

Run = Callable[..., subprocess.CompletedProcess[str]]

_BASH = "/bin/bash"


@pytest.fixture
def sender(
    tiny: dict[str, Any], planned: Callable[[Mapping[str, Any]], StudyPaths], commands: Commands
) -> OneJobSender:
    """Of a study of three jobs."""
    commands.add("scontrol", "echo MaxArraySize=1001")
    paths = planned(tiny | {"rounds": 3})
    of_study = plan.from_json(paths.plan_json.read_text(), "plan.json")
    return OneJobSender(paths, of_study, of_study.jobs)


@pytest.fixture
def run(sender: OneJobSender, commands: Commands, tmp_path: Path) -> Run:
    """Run the script, with an srun that does this, so many seconds after the Slurm job has started."""

    def run(srun: str, after_s: int = 0) -> subprocess.CompletedProcess[str]:
        commands.add("srun", srun)
        (script,) = sender.scripts()
        (tmp_path / "script").write_text(script)
        return subprocess.run(
            [_BASH, "-c", f"SECONDS={after_s}; source {tmp_path}/script"],
            env=dict(os.environ), capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(("code", "started", "ending"), [(0, 3, 0), (1, 3, 1), (75, 1, 1)])
def test_a_job_that_fails_is_not_the_last_and_one_that_is_interrupted_is(
    code: int, started: int, ending: int, run: Run, commands: Commands
) -> None:
    """After the signal before the time limit, what comes next would have no time, though by the clock it has some."""
    done = run(f"exit {code}")

    assert (done.returncode, len(commands.calls("srun"))) == (ending, started)
    assert ("r01-torch_save-here-1x1: interrupted" in done.stdout) == (code == 75)


def test_a_job_whose_time_does_not_come(run: Run, commands: Commands) -> None:
    """So near to the limit of an hour that the signal has been sent: no job starts, and the output says which."""
    assert run("", after_s=3400).returncode == 0
    assert len(commands.calls("srun")) == 3
    done = run("", after_s=3500)

    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"r0{number}-torch_save-here-1x1: no time left" for number in (1, 2, 3)]
    assert len(commands.calls("srun")) == 3


@pytest.mark.parametrize(("message", "kept"), [("Socket timed out", 1), ("invalid partition", 0)])
def test_the_script_of_a_refused_submission(message: str, kept: int, sender: OneJobSender, commands: Commands) -> None:
    """It stays only where Slurm may have queued the job all the same: the next submission looks for it by that name."""
    commands.add("sbatch", f"echo 'sbatch: error: {message}' >&2; exit 1")
    with pytest.raises(SubmissionError, match=message):
        sender.send()
    assert len(list(sender._paths.slurm.glob(".submission_file_*.sh"))) == kept
