"""The training of examples/train.sbatch on a real Slurm: ended early, it goes back to the queue and resumes.

Its weights are in the end those of a training that nothing interrupted, bit for bit.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.series import steps

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]

PYTHON = """#!/bin/sh
# Endless at first. Once requeued, the training ends 50 steps after the one that it resumes from.
steps=1000000000
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  latest=$(readlink %(run)s/latest)
  steps=$(expr "${latest#step-}" + 50)
fi
PYTHONPATH=%(root)s exec %(python)s "$@" --steps "$steps"
"""


class Training:
    """A training that was submitted with examples/train.sbatch and has saved some checkpoints."""

    def __init__(self, cluster: Any, directory: Path, *options: str) -> None:
        self.cluster, self.directory = cluster, directory
        self.run, self.output = directory / "run", directory / "output"
        python = directory / "bin" / "python"
        python.parent.mkdir()
        paths = {"run": self.run, "root": ROOT, "python": sys.executable}
        python.write_text(PYTHON % {name: shlex.quote(str(path)) for name, path in paths.items()})
        python.chmod(0o755)
        self.job = cluster.ask(
            "sbatch", "--parsable", f"--chdir={ROOT}", f"--output={self.output}",
            f"--export=ALL,PATH={python.parent}:{os.environ['PATH']}", *options,
            str(ROOT / "examples" / "train.sbatch"), "--directory", str(self.run), "--every", "5",
        ).strip()  # fmt: skip
        cluster.wait("the checkpoints of some steps", lambda: len(steps.steps_in(self.run)) > 2)

    def until_it_has_ended(self) -> str:
        """Wait until the job is in the queue no more, and return what it printed."""
        self.cluster.wait("the end", lambda: self.job not in self.cluster.ask("squeue", "-h", "-o", "%A").split())
        return self.output.read_text()

    def must_have_the_weights_of_one_in_one_go(self) -> None:
        """Train as many steps in one go, on the cluster too, and compare."""
        *_, last = steps.all_whole(self.run)
        whole = self.directory / "whole"
        self.cluster.ask(
            "srun", f"--chdir={ROOT}", "--ntasks=1", "env", f"PYTHONPATH={ROOT}", sys.executable, "examples/train.py",
            "--directory", str(whole), "--steps", str(last),
        )  # fmt: skip
        expected, actual = (ckpt.load(run / "latest")["model"] for run in (whole, self.run))
        for name, tensor in expected.items():
            assert torch.equal(tensor, actual[name]), name


def test_a_training_near_its_time_limit(cluster: Any, tmp_path: Path) -> None:
    """SIGUSR2: the step that was running is saved and the last one, and the next run goes on after it."""
    training = Training(cluster, tmp_path)
    cluster.ask("scancel", "--signal=USR2", training.job)  # to the job's steps, as --signal=USR2@120 does
    output = training.until_it_has_ended()
    stopped = re.search(r"SIGUSR2: training stops after step (\d+), which is saved", output)
    assert stopped, output
    assert ["resumed at step " + stopped[1]] == re.findall(r"resumed at step \d+", output), output
    training.must_have_the_weights_of_one_in_one_go()


@pytest.mark.each_slurm
def test_a_preempted_training(cluster: Any, tmp_path: Path) -> None:
    """SIGTERM, and a few seconds: with or without one more checkpoint, the training comes back and resumes."""
    training = Training(cluster, tmp_path, "--partition=preempt", "--nodelist=node4", "--exclusive")
    cluster.ask("sbatch", "-p", "nvme", "--nodelist=node4", "--exclusive", "--output=/dev/null", "--wrap=true")
    output = training.until_it_has_ended()
    assert re.search(r"resumed at step \d+", output), output
    training.must_have_the_weights_of_one_in_one_go()


def test_a_cancelled_training_stays_away(cluster: Any, tmp_path: Path) -> None:
    """It saves once more, and doesn't go back to the queue."""
    training = Training(cluster, tmp_path)
    cluster.ask("scancel", training.job)
    output = training.until_it_has_ended()
    assert "resumed" not in output
    cluster.wait("its state", lambda: "CANCELLED" in cluster.ask("sacct", "-nXj", training.job, "-o", "State"))
