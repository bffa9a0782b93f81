"""The examples of trainings by other libraries: they are killed, resume, and end as if they had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ckpt
from support import installed

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def command(example: str, directory: Path, *arguments: str) -> list[str]:
    """The command of an example."""
    return [sys.executable, str(ROOT / "examples" / example), "--directory", str(directory), *arguments]


def run(example: str, directory: Path, *arguments: str) -> None:
    """Run an example; it must end well."""
    done = subprocess.run(
        command(example, directory, *arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kill_after_a_save(example: str, directory: Path, *arguments: str) -> None:
    """Start an example, and kill it when its first checkpoint is committed."""
    log = directory.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command(example, directory, *arguments), env=ENVIRONMENT, stdout=output, stderr=output
        )
        while not (directory / "latest").exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("library", "example", "long", "short", "model"),
    [
        ("accelerate", "train_transformers.py", ("--steps", str(10**9)), ("--steps", "150"), "model"),
        ("lightning", "train_lightning.py", ("--epochs", str(10**9)), ("--epochs", "30"), "state_dict"),
    ],
)
def test_a_killed_training(
    library: str, example: str, long: tuple[str, ...], short: tuple[str, ...], model: str, tmp_path: Path
) -> None:
    """It resumes from its last save, and ends with the weights of a run that was never interrupted."""
    installed.require(library)
    kill_after_a_save(example, tmp_path / "killed", *long)
    first = ckpt.load(tmp_path / "killed" / "latest")
    run(example, tmp_path / "killed", *short)
    run(example, tmp_path / "whole", *short)
    one, other = (ckpt.load(tmp_path / name / "latest")[model] for name in ("whole", "killed"))
    assert not all(torch.equal(tensor, first[model][name]) for name, tensor in other.items())
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
