"""How Python starts on a node: from a module, in a container; with submitit, with srun, in the batch scripts."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log

pytestmark = pytest.mark.slurm

MODULES = Path("/usr/share/modules/init/bash")


@pytest.fixture
def container() -> str:
    """A command that runs another one in a container whose host is called `container`; Bubblewrap makes it."""
    command = shutil.which("bwrap")
    if command is None or not MODULES.exists():
        reason = "bubblewrap or environment-modules is not installed"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return f"{command} --dev-bind / / --unshare-uts --hostname container"


def test_a_container_and_a_module(
    container: str, cluster: Any, write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one variable holds for check, run and plain sbatch; a module brings the Python that the container starts."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "python-of-the-module").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (commands / "python-of-the-module").chmod(0o755)
    (tmp_path / "ckpt").write_text(f"#%Module\nprepend-path PATH {commands}\n")
    load = [f"source {MODULES}", f"module use {tmp_path}", "module load ckpt"]
    study = write_study("contained", slurm=f"setup = {load}")
    monkeypatch.setitem(cluster.environment, "CKPT_STUDY_PYTHON", f"{container} python-of-the-module")

    ran = cluster.jobs("run", study, "--results", tmp_path)
    assert 0 == ran.returncode, ran.stdout + ran.stderr
    log = timing_log.read(tmp_path / "contained" / "logs" / "r01-torch_save-shared-1x1.h5")
    assert ("complete", "container", "ckpt") == (
        log.header.status, log.provenance["host"], log.provenance["modules"],
    )  # fmt: skip

    checked = cluster.jobs("check", study, "--results", tmp_path)
    assert 0 == checked.returncode, checked.stdout + checked.stderr
    assert "and the package start (on container)" in checked.stdout
    monkeypatch.setitem(cluster.environment, "CKPT_STUDY_PYTHON", f"{container} {sys.executable}")
    cluster.ask(
        "sbatch", "--wait", f"--output={tmp_path}/out", "slurm/job.sbatch", str(write_study("plain")),
        "--strategy", "torch_save", "--target", "shared", "--results", str(tmp_path),
    )  # fmt: skip
    log = timing_log.read(tmp_path / "plain" / "logs" / "r01-torch_save-shared-1x1.h5")
    assert ("complete", "container") == (log.header.status, log.provenance["host"])


def test_a_python_that_no_node_has(
    cluster: Any, write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` names the command that doesn't start, and the variable to set."""
    monkeypatch.setitem(cluster.environment, "CKPT_STUDY_PYTHON", "/nowhere/python3")
    checked = cluster.jobs("check", write_study("absent"), "--results", tmp_path)
    assert 1 == checked.returncode
    assert "/nowhere/python3" in checked.stdout
    assert "CKPT_STUDY_PYTHON" in checked.stdout
