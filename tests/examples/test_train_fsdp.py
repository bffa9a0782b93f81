"""The FSDP2 example: its losses don't depend on where it was interrupted, nor on the number of ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(checkpoint: Path, ranks: int, steps: int) -> dict[int, str]:
    """Train up to a step with so many ranks; returns the losses by step, in hexadecimal."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    example = [ROOT / "examples" / "train_fsdp.py", "--steps", str(steps), "--every", "3", "--checkpoint", checkpoint]
    done = subprocess.run(
        [*torchrun, *example],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {int(step): loss for step, loss in re.findall(r"^step (\d+): loss (\S+)$", done.stdout, re.MULTILINE)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The losses of one run of seven steps on two ranks."""
    return train(tmp_path_factory.mktemp("fsdp") / "latest", 2, 7)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
def test_resumed_on_another_number_of_ranks(
    uninterrupted: dict[int, str], before: int, after: int, tmp_path: Path
) -> None:
    """All losses are those of the run that was not interrupted, bit for bit, and they fall."""
    first = train(tmp_path / "latest", before, 4)
    assert [1, 2, 3, 4] == list(first)
    second = train(tmp_path / "latest", after, 7)
    assert [5, 6, 7] == list(second)
    assert uninterrupted == first | second
    assert float.fromhex(second[7]) < float.fromhex(first[1]) / 1.2
