"""What starts a job or a command from outside: names that other releases and installed scripts rely on."""

from __future__ import annotations

import pickle
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import jobs
from jobs.node.run import run_submitted

ROOT = Path(jobs.__file__).parents[1]


def test_a_job_queued_by_the_release_before_starts() -> None:
    """Submitit pickles the function by name, and the release before submitted `jobs.run.run_submitted`."""
    queued = b"cjobs.run\nrun_submitted\n."

    assert pickle.loads(queued) is run_submitted


def test_the_installed_command(python: Any) -> None:
    """`ckpt-study jobs plan` prints what `python -m jobs plan` prints; neither needs what only compute nodes have."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["ckpt-study"].partition(":")
    command = ["-c", f"from {module} import {function}; {function}()"]
    hidden = ("torch", "transformers", "tensorstore", "pandas", "submitit", "psutil")

    by_module = python("-m", "jobs", "plan", "quick", without=hidden)
    by_command = python(*command, "jobs", "plan", "quick", without=hidden)
    unknown = python(*command, "job", "plan", "quick", without=hidden)
    version = python(*command, "--version", without=hidden)

    assert (by_command.returncode, by_command.stderr) == (0, "")
    assert by_command.stdout == by_module.stdout
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there are jobs, analysis, ckpt" in unknown.stderr
    assert version.stdout == f"ckpt-study {metadata.version('ckpt-study')}\n"


def test_each_room_has_its_commands(python: Any) -> None:
    """`ckpt-study ROOM --help` lists the commands of that room."""
    command = ["-c", "from ckpt.command import main; main()"]

    helps = {room: python(*command, room, "--help").stdout for room in ("jobs", "analysis", "ckpt")}

    assert "selftest" in helps["jobs"]
    assert "report" in helps["analysis"]
    assert "strategies" in helps["ckpt"]
    assert python(*command, "--help").returncode == 0
