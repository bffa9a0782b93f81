"""The kernel kills a process for its memory, in a control group that is too small for a save, or for a load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt
from support.memory_group import memory_group
from support.starved import state_of

LIMIT_BYTES = 4 * 2**20
"""A sixteenth of the state, and less than what a save writes from."""


def is_killed(what: str, strategy: str, directory: Path) -> None:
    """Let a process begin that, and see it killed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with memory_group(LIMIT_BYTES) as group:
        command = [sys.executable, "-m", "support.starved", what, strategy, str(directory), str(group)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["begun"]), done.stderr


@pytest.mark.parametrize("what", ["save", "series", "load"])
def test_the_old_checkpoint_stays(what: str, final: Path) -> None:
    """Whole, whether the process was saving over it or loading it; the next save removes what a killed one left."""
    strategy = "safetensors_tuned"
    kept = final.parent / "step-000000001" if what == "series" else final
    ckpt.save(state_of(1), kept, strategy)
    is_killed(what, strategy, final.parent)
    wanted = {kept.name, "latest"}  # a series has both
    left = {path.name for path in final.parent.iterdir()} - wanted
    assert bool(left) == (what == "save"), left
    assert {1.0} == set(ckpt.load(kept)["w"].unique().tolist())
    ckpt.save(state_of(3), kept, strategy)
    assert {path.name for path in final.parent.iterdir()} <= wanted
    assert ckpt.load(kept)["step"] == 3
