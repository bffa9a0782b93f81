"""A save that gets no more memory, or no more descriptors: one error, the old checkpoint, and a next save that works.

What a process may have is limited here, so that allocations fail inside the libraries. `test_out_of_memory` has the
kernel's end for a process that takes too much memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt
from support.limited_saves import LIMITS, state_of
from support.strategies import usable


def step_of(directory: Path) -> int:
    """The step of the checkpoint that lies there, whole."""
    state = ckpt.load(directory)
    assert {float(state["step"])} == set(state["w"].tolist())
    return int(state["step"])


@pytest.mark.parametrize("strategy", ["safetensors_tuned", "tensorstore_tuned"])
def test_a_save_under_limits(strategy: str, tmp_path: Path) -> None:
    """A save that returns has replaced the old checkpoint; one that raises, or ends its process, has not."""
    usable(strategy)
    command = [sys.executable, "-m", "support.limited_saves", strategy, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    endings = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(endings) == sum(map(len, LIMITS.values()))
    for kind, more, returned, error in endings:
        final = tmp_path / f"{kind}-{more}" / "latest"
        case = f"{more} more {kind}: {error}"
        assert returned or error.startswith(("CheckpointError: ", "is ended by ")), case
        assert step_of(final) == (2 if returned else 1), case
        ckpt.save(state_of(3), final, strategy)
        assert step_of(final) == 3, case
        assert list(final.parent.iterdir()) == [final], case
    outcomes = {(kind, more): returned for kind, more, returned, _ in endings}
    assert not outcomes["descriptors", 0]
    assert outcomes["descriptors", 1000]
