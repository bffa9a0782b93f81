"""Small files on a target: what is measured, by whom, and that nothing stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log
from jobs.node import metadata
from jobs.node.run import run_job
from jobs.paths import StudyPaths
from jobs.plan import plan
from jobs.timing_log import TimingLog

Planned = Callable[[Mapping[str, Any]], StudyPaths]

OPERATIONS = ["mkdir", "create", "stat", "read", "unlink", "rmdir"]


def run_only(paths: StudyPaths) -> TimingLog:
    """Run the study's only job; returns its log."""
    [job] = plan.from_json(paths.plan_json.read_text(), "plan.json").jobs
    run_job(str(paths.root), job.id)
    return timing_log.read(paths.log(job.id))


def test_one_rank(tiny: dict[str, Any], target: Path, planned: Planned) -> None:
    """One process makes, finds, reads and removes files of its own, before the ceiling, and none is left."""
    log = run_only(planned(tiny))

    assert log.header.status == "complete"
    assert [row.operation for row in log.metadata] == OPERATIONS
    for row in log.metadata:
        assert (row.rank, row.made_by, row.ranks, row.when) == (0, 0, 1, "before")
        assert 0 < row.count <= 200
        assert row.duration_s > 0
        assert row.size_bytes == (0 if row.operation in {"mkdir", "rmdir"} else 3901)
    last = max(row.start_s + row.duration_s for row in log.metadata)
    assert last <= min(row.start_s for row in log.ceiling)
    assert "metadata" not in log.provenance
    assert list(target.iterdir()) == []


def test_it_can_be_left_out(tiny: dict[str, Any], planned: Planned) -> None:
    """`metadata = false` measures none."""
    tiny["trials"]["metadata"] = False

    assert run_only(planned(tiny)).metadata == []


def test_a_slow_target_takes_no_longer_than_a_fast_one(
    tiny: dict[str, Any], target: Path, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation ends at its time limit, later ones see only the files that there are, and all are removed."""
    monkeypatch.setattr(metadata, "_LONGEST_S", 1e-9)
    log = run_only(planned(tiny))

    assert {row.operation: row.count for row in log.metadata} == dict.fromkeys(OPERATIONS, 1)
    assert list(target.iterdir()) == []


def test_a_target_that_refuses_costs_no_trial(
    tiny: dict[str, Any], target: Path, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file can't be made the log says why, with what had been measured, and the trials go on."""

    def full(path: str) -> None:
        raise OSError(28, os.strerror(28), path)

    monkeypatch.setattr(metadata, "_create", full)
    log = run_only(planned(tiny))

    assert log.header.status == "complete"
    assert [row.operation for row in log.metadata] == ["mkdir"]
    assert "create: OSError: [Errno 28] No space left on device" in log.provenance["metadata"]
    assert list(target.iterdir()) == []
