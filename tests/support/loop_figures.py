"""The setting of simulated training loops, for figures of them."""

from __future__ import annotations

from pathlib import Path

from analysis.logs.load import load_results
from analysis.measures.setting import Setting, settings
from support.loops import Costs, LoopSimulation

SYNC = Costs(call_s=3.0, latency_s=3.0)

THREAD = Costs(snapshot_s=0.5, call_s=0.1, latency_s=5.2, interference_s=0.2, tail_s=(0.3,))

SHORT = {"blocks": 3, "saves": 2}

ENOUGH = {"blocks": 5, "saves": 2}


def setting_of(directory: Path, *simulations: LoopSimulation) -> Setting:
    """The one setting of these jobs."""
    for simulation in simulations:
        simulation.write(directory / "tiny")
    [setting] = settings(load_results([directory / "tiny"]))
    return setting
