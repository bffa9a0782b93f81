"""A training loop that was interrupted and went on: every process that ran it has a reference of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from analysis.measures.setting import Setting
from jobs.timing_log import TimingLog
from support.loops import Costs, LoopSimulation
from support.lost_time import SYNC, cost_of, measure, only

BEHIND = Costs(snapshot_s=0.5, latency_s=8.0)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Setting]:
    """Write the logs of simulated jobs, doctored by a change, and return their setting."""
    return partial(measure, tmp_path / "tiny")


def go_on(log: TimingLog, later: TimingLog) -> None:
    """Append what a job recorded when it went on, an hour later."""
    run = max(row.block for row in log.blocks) + 1
    hour_s = 3600.0
    log.blocks += [replace(row, block=row.block + run, start_s=row.start_s + hour_s, run=run) for row in later.blocks]
    log.steps += [replace(row, block=row.block + run, start_s=row.start_s + hour_s) for row in later.steps]
    log.saves += [replace(row, block=row.block + run, start_s=row.start_s + hour_s) for row in later.saves]


def test_another_calibration_is_no_lost_time(measured: Callable[..., Setting]) -> None:
    """Steps are a tenth longer where the job went on: every save shows what it cost by construction all the same."""
    later = LoopSimulation(costs=BEHIND, noise=0.001, seed=1, spec={"step_s": 1.1}).log
    simulation = LoopSimulation(costs=BEHIND, noise=0.001)
    cost = cost_of(measured(simulation, change=lambda log: go_on(log, later)))

    assert [job.reference.median_s for job in cost.jobs] == pytest.approx([1.0, 1.1], abs=0.01)
    lost_s = [save.lost_s for job in cost.jobs for save in job.saves]
    assert lost_s == pytest.approx([0.5] * 32, abs=0.1)
    assert only(cost).lost.interval.estimate == pytest.approx(0.5, abs=0.05)
    assert [job.name for job in cost.jobs] == [simulation.log.header.job_id, f"{cost.jobs[0].job_id}, from block 11"]


@pytest.mark.parametrize("reason", ["", "loaded state differs: w"])
def test_a_run_without_a_reference(reason: str, measured: Callable[..., Setting]) -> None:
    """What a process did that was interrupted before its first block without checkpoints is left out, and no fault of
    the method; a checkpoint that was wrong is shown.
    """
    later = LoopSimulation(costs=BEHIND, noise=0.001, seed=1).log

    def interrupt(log: TimingLog) -> None:
        last = next(row.block for row in log.blocks if row.every and not row.opening)
        for name in ("blocks", "steps", "saves"):
            setattr(log, name, [row for row in getattr(log, name) if row.block in {0, last}])
        log.saves[-1] = replace(log.saves[-1], valid=not reason, reason=reason)
        go_on(log, later)

    cost = cost_of(measured(LoopSimulation(costs=BEHIND, noise=0.001), change=interrupt))
    assert dict(cost.invalid) == ({reason: 1} if reason else {})
    assert only(cost).saves == 15
    assert only(cost).lost.interval.estimate == pytest.approx(0.5, abs=0.05)


def test_hosts_of_a_run_that_was_interrupted(measured: Callable[..., Setting]) -> None:
    """The log has the hosts of the last run: those of the others aren't known, and none is named for them."""
    slow = replace(SYNC, slow_rank=1)
    later = LoopSimulation(way="sync", costs=slow, nodes=2, seed=1).log
    setting = measured(LoopSimulation(way="sync", costs=slow, nodes=2), change=lambda log: go_on(log, later))
    hosts = [{save.slow_rank.host for save in job.saves if save.slow_rank} for job in cost_of(setting, "sync").jobs]
    assert hosts == [{""}, {"node1"}]
