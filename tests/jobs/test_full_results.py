"""A results directory without room: one message that names it, and what to do, wherever that is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ON_A_FULL_DISK = """
set -e
mount -t tmpfs -o size=256k none "$1"
"$2" - "$1" "$3" <<'PY' || true
import os, sys
with open(f"{sys.argv[1]}/large", "wb", buffering=0) as file:
    os.posix_fallocate(file.fileno(), 0, os.statvfs(sys.argv[1]).f_bavail * 4096 - int(sys.argv[2]))
PY
shift 3
exec "$@"
"""

STUDY = """
name = "small"
rounds = 1
[state]
model = "llama-15m"
tensors = 1
[targets.disk]
path = "{target}"
[[strategies]]
name = "torch_save"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of one job."""
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(target=tmp_path))
    return path


def run(disk: Path, free_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs` where `disk` is a filesystem with so much room."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("mounting needs root")
        pytest.skip("mounting needs root")
    disk.mkdir()
    command = ["unshare", "--mount", "bash", "-c", ON_A_FULL_DISK, "bash", str(disk), sys.executable, str(free_bytes)]
    command += [sys.executable, "-m", "jobs", *arguments]
    environment = os.environ | {"COLUMNS": "400"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("free_bytes", [0, 4096])
def test_a_run(free_bytes: int, study: Path, tmp_path: Path) -> None:
    """Neither the directories nor the plan can be written: nothing starts."""
    disk = tmp_path / "disk"
    done = run(disk, free_bytes, "run", str(study), "--results", str(disk), "--cluster", "debug")
    assert done.returncode == 2, done.stderr
    assert f"error: can't write to the results directory {disk}/small: its filesystem is full" in done.stderr
    assert "make room there, or try --results DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log(study: Path, tmp_path: Path) -> None:
    """The disk fills while a job runs: the job says that its log could not be written."""
    disk = tmp_path / "disk"
    done = run(disk, 40_000, "run", str(study), "--results", str(disk), "--cluster", "debug")
    assert done.returncode == 1, done.stderr
    log = disk / "small" / "logs" / "r01-torch_save-disk-1x1.h5"
    assert f"r01-torch_save-disk-1x1: can't write {log}: its filesystem is full" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_check(study: Path, tmp_path: Path) -> None:
    """The preflight notices it, by writing a little."""
    disk = tmp_path / "disk"
    done = run(disk, 100_000, "check", str(study), "--results", str(disk), "--cluster", "debug")
    assert done.returncode != 0, done.stdout
    assert f"can't write {disk}: its filesystem is full" in done.stdout
    assert "choose --results DIR" in done.stdout
