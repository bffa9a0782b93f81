"""What simulated training loops with known lost time cost by their logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from analysis.logs.load import load_results
from analysis.measures.loop import spec_of
from analysis.measures.loop_cost import loop_cost, with_verdicts
from analysis.measures.loop_jobs import LoopRows, job_loop
from analysis.measures.lost import AtInterval, LoopCost
from analysis.measures.setting import Setting, settings
from analysis.measures.statistics import Interval
from jobs.timing_log import LoopSave, TimingLog
from support.loops import Costs, LoopSimulation

SYNC = Costs(call_s=3.0, latency_s=3.0)

BEHIND = Costs(snapshot_s=0.5, call_s=0.1, latency_s=5.2, interference_s=0.1, tail_s=(0.3, 0.2))

UPDATE_WAIT = Costs(call_s=0.2, update_wait_s=0.4, latency_s=2.5, interference_s=0.3)


def measure(
    root: Path, *simulations: LoopSimulation, change: Callable[[TimingLog], object] = lambda _: None
) -> Setting:
    """Write the logs of simulated jobs, doctored by a change, and return their setting."""
    for simulation in simulations:
        simulation.write(root, change)
    [setting] = settings(load_results([root]))
    return setting


def cost_of(setting: Setting, way: str = "thread", label: str = "torch_save") -> LoopCost:
    """What one method of a setting costs."""
    method = setting.method(f"{label}+way={way}")
    assert method is not None
    assert method.loop is not None
    return method.loop


def cost_of_one(simulation: LoopSimulation) -> LoopCost:
    """What a simulated job's method costs, computed from the rows in memory."""
    log = simulation.log
    spec = spec_of(log.header.loop)
    assert spec is not None
    tables = (pd.DataFrame([asdict(row) for row in rows]) for rows in (log.blocks, log.steps, log.saves, log.ranks))
    empty = pd.DataFrame(columns=[column.name for column in fields(LoopSave)])
    blocks, steps, saves, ranks = (table if len(table) else empty for table in tables)
    [cost] = with_verdicts([loop_cost([job_loop(asdict(log.header), spec, LoopRows(blocks, steps, saves, ranks))])])
    return cost


def only(cost: LoopCost) -> AtInterval:
    """Its only interval."""
    [at] = cost.at
    return at


def holds(interval: Interval, value: float) -> bool:
    """Whether an interval holds a value, but for rounding."""
    return interval.low - 1e-9 <= value <= interval.high + 1e-9
