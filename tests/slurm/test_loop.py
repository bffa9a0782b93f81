"""A training loop of several ranks on several nodes of a real Slurm."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log

ROOT = Path(__file__).parent.parent.parent
STRATEGIES = ROOT / "tests" / "jobs" / "strategies"

pytestmark = pytest.mark.slurm


def test_one_ranks_slow_save_holds_all(cluster: Any, write_study: Callable[..., Path], tmp_path: Path) -> None:
    """Two nodes with two ranks each: the step in which the last rank copies its state slowly is long on all ranks; the
    others spend that time in the collective, so that the log has who was late, and the table names it and its host.
    """
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import ckpt.strategies\nckpt.strategies.__path__.append({str(STRATEGIES)!r})\n"
    )
    login = replace(cluster, environment=cluster.environment | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"})
    study = write_study(
        "straggler", strategies='[{ name = "doctored", how = "slow" }]', repeats=5, trials="ceiling = false",
        slurm='nodes = 2\ntasks_per_node = 2\n[loop]\nstep = "idle"\nstep_s = 0.05\nways = "library"\nevery = 4\n'
        "saves = 2\nblocks = 1",
    )  # fmt: skip
    done = login.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    (path,) = (tmp_path / "straggler" / "logs").glob("*.h5")
    log = timing_log.read(path)
    assert ("complete", "") == (log.header.status, log.header.error)
    assert {0, 1, 2, 3} == {step.rank for step in log.steps} == {save.rank for save in log.saves}
    assert [] == [save.reason for save in log.saves if not save.valid]
    assert 3 * 4 == len(log.saves)
    for number, place in {(save.block, save.step) for save in log.saves}:
        ranks = [step for step in log.steps if (step.block, step.step) == (number, place)]
        late = min(ranks, key=lambda step: step.collective_s)
        assert 3 == late.rank
        assert late.blocked_s >= 1
        assert all(step.duration_s >= 1 for step in ranks)
        assert all(step.collective_s > 0.5 for step in ranks if step.rank != 3)
    table = cluster.ask(sys.executable, "-m", "analysis", "table", path.parent.parent, "--format", "markdown")
    (row,) = [line for line in table.partition("Slowest ranks")[2].splitlines() if "doctored" in line]
    assert f"| 3 (2 of 2 saves) | {log.ranks[3].host} |" in " ".join(row.split())
