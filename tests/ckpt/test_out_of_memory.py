"""The kernel kills a process for its memory, in a control group that is too small for a save, or for a load."""

from __future__ import annotations

import os
import re
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


def starved(what: str, strategy: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Let a process do that with too little memory."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with memory_group(LIMIT_BYTES) as group:
        command = [sys.executable, "-m", "support.starved", what, strategy, str(directory), str(group)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("what", ["save", "load"])
def test_the_old_checkpoint_stays(what: str, final: Path) -> None:
    """Whole, whether the process was saving over it or loading it; the next save removes what a killed one left."""
    strategy = "safetensors_tuned"
    ckpt.save(state_of(1), final, strategy)
    done = starved(what, strategy, final.parent)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["begun"]), done.stderr
    left = {path.name for path in final.parent.iterdir()} - {final.name}
    assert bool(left) == (what == "save"), left
    assert {1.0} == set(ckpt.load(final)["w"].unique().tolist())
    ckpt.save(state_of(3), final, strategy)
    assert [final] == list(final.parent.iterdir())
    assert ckpt.load(final)["step"] == 3


def test_a_copy_that_the_group_has_no_memory_for(final: Path) -> None:
    """A series raises an error instead of being killed: the group's limit counts, not only the machine's memory."""
    done = starved("series", "safetensors_tuned", final.parent)
    assert done.returncode == 1, done.stderr
    assert re.search(r"a copy of the state takes 67 MB of memory, and [1-4] MB are available", done.stderr)
