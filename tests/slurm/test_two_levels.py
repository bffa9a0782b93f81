"""A sharded training on two nodes with node-local storage: a part of every checkpoint on each, all of it on the shared.

The nodes are real ones of Slurm's, with processes, mounts and storage of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import ckpt
from ckpt.series import steps

pytestmark = pytest.mark.slurm


def train(cluster: Any, run: Path, last: int, nodes: str) -> list[str]:
    """Train on two nodes with two ranks each; returns the step that was restored, and those that stay."""
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    assigned = [f"{name}={value}" for name, value in variables.items()]
    printed: str = cluster.ask(
        "srun", f"--nodelist={nodes}", "--nodes=2", "--ntasks-per-node=2", "env", *assigned,
        sys.executable, "-m", "support.node_training", str(run), str(last),
    )  # fmt: skip
    return printed.split()


def test_nodes_that_are_lost(cluster: Any, tmp_path: Path) -> None:
    """The same nodes resume from what they have, though it was not copied; other ones from what was."""
    run = tmp_path / "run"
    restored, *kept = train(cluster, run, 2, "node1,node2")
    assert ("None", "2") == (restored, kept[-1])
    assert ckpt.load(run / "latest")["step"] == 2
    shutil.rmtree(steps.path_of(run, 2))  # as if the job had been killed before the copy
    restored, *kept = train(cluster, run, 3, "node1,node2")
    assert ("2", "3") == (restored, kept[-1])
    restored, *kept = train(cluster, run, 4, "node3,node4")
    assert ("3", "4") == (restored, kept[-1])
    assert ckpt.load(run / "latest")["step"] == 4
    assert not [path.name for path in run.iterdir() if ".part-" in path.name]
