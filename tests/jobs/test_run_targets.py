"""Targets that a job can't measure on its node: it fails before it writes, and its log says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import mounts
from support.one_job import Planned, run_only


def _missing(target: Path) -> dict[str, Any]:
    return {"path": str(target / "nowhere")}


def _a_file(target: Path) -> dict[str, Any]:
    (target / "file").touch()
    return {"path": str(target / "file")}


def _unset(_: Path) -> dict[str, Any]:
    return {"path": "$NO_SUCH_VARIABLE/x"}


def _memory(_: Path) -> dict[str, Any]:
    if not mounts.mount_of(Path("/dev/shm")).in_memory:
        pytest.skip("/dev/shm is no filesystem in memory here")
    return {"path": "/dev/shm"}


def _unwritable(target: Path) -> dict[str, Any]:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    target.chmod(0o500)
    return {"path": str(target)}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_missing, "nowhere) is no directory here"),
        (_a_file, "file) is no directory here"),
        (_unset, "$NO_SUCH_VARIABLE is not set here"),
        (_memory, "which is memory and no disk"),
        (_unwritable, "can't be written to by this user"),
    ],
)
def test_target_that_is_none(
    make: Callable[[Path], dict[str, Any]], told: str, tiny: dict[str, Any], target: Path, planned: Planned
) -> None:
    """A target that can't be measured on this node fails the job; its log names the target and what to do."""
    tiny["targets"] = {"here": make(target)}
    log = run_only(planned(tiny))

    assert log.header.status == "failed"
    assert log.header.error.startswith("TargetError: target 'here'")
    assert told in log.header.error
    assert log.samples == []


def test_target_without_room(
    tiny: dict[str, Any], changed_model: Callable[..., Path], target: Path, planned: Planned
) -> None:
    """A checkpoint that would not fit is never begun: the log says how much is free and how much it takes."""
    tiny["state"]["model"] = str(changed_model(vocab_size=10**12))  # 2 × 128 TB
    log = run_only(planned(tiny))

    assert log.header.status == "failed"
    assert "GB free, and a job may need 268,800.0 GB at a time" in log.header.error
    assert list(target.iterdir()) == []
