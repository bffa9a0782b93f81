"""A training loop of several ranks on several nodes of a real Slurm."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log
from jobs.timing_log import Step, TimingLog

ROOT = Path(__file__).parent.parent.parent
STRATEGIES = ROOT / "tests" / "jobs" / "strategies"

SLOW_S = 3
"""As in the strategy."""

pytestmark = pytest.mark.slurm


def test_one_ranks_slow_save_holds_all(cluster: Any, write_study: Callable[..., Path], tmp_path: Path) -> None:
    """Two nodes with two ranks each, of which the last is slow. If it copies its state slowly, its step is long, and
    the others wait in the collective. If it writes slowly in a synchronous save, the commit holds all alike. The log
    has who was late, and the table names it, its host, and by what.
    """
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import ckpt.strategies\nckpt.strategies.__path__.append({str(STRATEGIES)!r})\n"
    )
    login = replace(cluster, environment=cluster.environment | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"})
    study = write_study(
        "straggler", strategies='[{ name = "doctored", how = "slow" }]', repeats=5, trials="ceiling = false",
        slurm='nodes = 2\ntasks_per_node = 2\n[loop]\nstep = "idle"\nstep_s = 0.05\nways = ["library", "sync"]\n'
        "every = 4\nsaves = 2\nblocks = 2",
    )  # fmt: skip
    done = login.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    paths = (tmp_path / "straggler" / "logs").glob("*.h5")
    logs = {log.header.way: log for log in map(timing_log.read, paths)}
    assert {"library", "sync"} == set(logs)
    for log in logs.values():
        assert ("complete", "") == (log.header.status, log.header.error)
        assert {0, 1, 2, 3} == {step.rank for step in log.steps} == {save.rank for save in log.saves}
        assert [] == [save.reason for save in log.saves if not save.valid]
        assert 5 * 4 == len(log.saves)
        for ranks in steps_with_calls(log):
            assert all(step.duration_s >= SLOW_S for step in ranks)
    for ranks in steps_with_calls(logs["library"]):
        late = min(ranks, key=lambda step: step.collective_s)
        assert 3 == late.rank
        assert late.blocked_s >= SLOW_S
        assert all(step.collective_s > SLOW_S / 2 for step in ranks if step.rank != 3)
    for number, place in {(save.block, save.save) for save in logs["sync"].saves}:
        saves = [save for save in logs["sync"].saves if (save.block, save.save) == (number, place)]
        assert all(save.call_s >= SLOW_S for save in saves)
        assert 3 == max(saves, key=lambda save: save.synced_s).rank
    table = cluster.ask(sys.executable, "-m", "analysis", "table", tmp_path / "straggler", "--format", "markdown")
    rows = [" ".join(line.split()) for line in table.partition("Slowest ranks")[2].splitlines() if "doctored" in line]
    for way, by in (("library", "call"), ("sync", "writing")):
        (row,) = [row for row in rows if f"way={way}" in row]
        assert f"| 3 (4 of 4 saves) | {logs[way].ranks[3].host} | {by} |" in row


def steps_with_calls(log: TimingLog) -> Iterator[list[Step]]:
    """The steps of all ranks in whose time a save was called."""
    for number, place in sorted({(save.block, save.step) for save in log.saves}):
        yield [step for step in log.steps if (step.block, step.step) == (number, place)]
