"""A training loop that saves behind itself is killed at random instants, and every restart goes on where it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("CKPT_KILLS", "40"))
"""2,000 in a long run."""


def killed(module: str, *arguments: object) -> int:
    """Run the program that kills; returns the last step that was committed."""
    done = subprocess.run(
        [sys.executable, "-m", f"support.{module}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("background", "kills"), [("thread", KILLS), ("process", max(4, KILLS // 10))])
def test_a_loop_that_is_killed(background: str, kills: int, levels: int, tmp_path: Path) -> None:
    """What was committed is there, bit for bit, and nothing else is left after the next start, on either level."""
    newest = killed("kills", tmp_path / "run", background, levels, kills, 17)
    assert newest >= kills // 2  # of four kills, two come after one and two committed steps at least


@pytest.mark.parametrize(
    ("background", "levels", "nodes"), [("thread", 1, 1), ("thread", 2, 1), ("thread", 2, 2), ("process", 2, 1)]
)
def test_ranks_that_are_killed(background: str, levels: int, nodes: int, tmp_path: Path) -> None:
    """Four ranks that save together restart together, from the newest checkpoint that all of them had committed."""
    kills = max(3, KILLS // 20)
    assert killed("killed_ranks", tmp_path / "run", background, levels, 4, kills, 17, nodes) >= kills // 3
