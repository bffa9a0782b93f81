"""Copies to a second level: how long they take, and how far they slow down the steps of loops that are simulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.logs.load import load_results
from analysis.measures.setting import settings
from analysis.tables.drains import drains_tables
from analysis.tables.text import text
from jobs.timing_log import TimingLog
from support.loops import Costs, LoopSimulation
from support.lost_time import cost_of, cost_of_one, holds, measure, only

COSTS = Costs(snapshot_s=0.5, latency_s=2.2, tail_s=(0.2,) * 4)
"""The step of the call takes 1.5 s, the next one has the commit; then four steps of 1.2 s end 7.3 s after the call."""

ON_NVME = {"target": "nvme", "way": "checkpointer", "noise": 0.0}


def copied(drained_s: float) -> Callable[[TimingLog], None]:
    """The second level has each checkpoint so many seconds after its call."""

    def change(log: TimingLog) -> None:
        log.saves[:] = [replace(save, drained_s=drained_s) for save in log.saves]

    return change


def fail(log: TimingLog) -> None:
    """Copies fail, those of the first save and of two others."""
    log.saves[:3] = [replace(save, drained_s=math.nan, drain_problem="the disk is full") for save in log.saves[:3]]


def simulated(*changes: Callable[[TimingLog], None], costs: Costs = COSTS) -> LoopSimulation:
    """A job whose log has copies."""
    simulation = LoopSimulation(costs=costs, **ON_NVME)  # type: ignore[arg-type]
    for change in changes:
        change(simulation.log)
    return simulation


def test_how_far_copies_slow_steps_down() -> None:
    """The steps that lie wholly between both commits count, relative to the median step without checkpoints."""
    drains = only(cost_of_one(simulated(copied(7.4)))).drains
    assert (15, {}, 15 * 4) == (drains.copied, drains.failed, drains.steps)
    assert drains.latency.estimate == pytest.approx(7.4)
    assert drains.drain.estimate == pytest.approx(7.4 - 2.2)
    assert drains.slowdown.estimate == pytest.approx(0.2)
    assert holds(drains.slowdown, 0.2)


def test_a_copy_that_takes_longer_than_the_interval() -> None:
    """Steps of the next save, from its call to its commit, are left out: they have that save's interference."""
    costs = replace(COSTS, snapshot_s=0.0, call_s=0.0, interference_s=5.0)
    drains = only(cost_of_one(simulated(copied(60.0), costs=costs))).drains
    assert 0 < drains.slowdown.estimate <= 0.2


def test_a_copy_within_a_step() -> None:
    """No whole step lay beside it: its slowdown is unknown, and its times are known."""
    drains = only(cost_of_one(simulated(copied(2.4)))).drains
    assert (15, 0) == (drains.copied, drains.steps)
    assert math.isnan(drains.slowdown.estimate)
    assert drains.drain.estimate == pytest.approx(0.2)


def test_copies_that_fail() -> None:
    """They are counted by reason, without those of first saves; the saves stay valid."""
    cost = cost_of_one(simulated(copied(7.4), fail))
    assert (13, {"the disk is full": 2}) == (only(cost).drains.copied, only(cost).drains.failed)
    assert (15, 0) == (only(cost).saves, only(cost).invalid)


def test_one_level_has_no_copies(tmp_path: Path) -> None:
    """Neither in the model nor as a table."""
    setting = measure(tmp_path / "tiny", LoopSimulation(costs=COSTS))
    assert 0 == only(cost_of(setting)).drains.copied
    assert [] == drains_tables([setting])


def test_one_table_has_both_targets(tmp_path: Path, file_regression: FileRegressionFixture) -> None:
    """It has saves to the shared target alone and saves on two levels; reasons of failed copies are footnotes."""
    study = tmp_path / "tiny"
    simulated(copied(7.4), fail).write(study)
    LoopSimulation(way="sync", costs=Costs(call_s=6.0, latency_s=6.0), target="lustre", noise=0.0).write(study)
    LoopSimulation(way="none", target="lustre", noise=0.0).write(study)
    [table] = drains_tables(settings(load_results([study])))
    file_regression.check(text(table))
