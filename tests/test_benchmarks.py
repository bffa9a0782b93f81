"""The benchmarks still run: each on as little as it takes, without a look at its numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"

SMALLEST = {
    "request_sizes.py": ["{}", "--mb", "1", "--rounds", "1", "--kib", "256", "--threads", "2"],
    "verification.py": ["{}", "--gb", "0.01", "--rounds", "1", "--strategies", "safetensors_tuned"],
    "rounds_as_blocks.py": ["2", "quiet"],
    "interpreter_lock.py": ["{}", "--gb", "0.02", "--rounds", "1", "--strategies", "safetensors_tuned"],
}
"""The others need fio, or xarray with dask, which the tests don't install."""


@pytest.mark.parametrize("program", SMALLEST)
def test_it_runs(program: str, tmp_path: Path) -> None:
    """Code that it uses may have moved."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / program, *(argument.format(tmp_path) for argument in SMALLEST[program])],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
