"""Random numbers that a training draws in its steps: they show whether its generators went on where they were."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

Numbers = dict[int, list[float]]
"""By step, what it drew."""


def _three() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002  # what is saved


def draw(rank: int = 0) -> list[float]:
    """Draw from the generators of Python, numpy and torch; the second rank draws more than the first."""
    return [number for _ in range(1 + rank) for number in _three()]


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models have the same weights, bit for bit."""
    weights = other.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def assert_same_on_two_ranks(module: str, directory: Path) -> None:
    """Run a module on two ranks, which both find that the resumed training is the same."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", module, directory],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):  # whose lines may end in one another
        assert f"rank {rank} of 2: the same" in done.stdout
