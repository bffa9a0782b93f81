"""The examples: what a reader copies must run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import analysis
import ckpt
from support.logs import COMMIT_S, GIB, LogBuilder, job

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def command(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(directory: Path, steps: int) -> list[str]:
    """The arguments of the training loop, with a checkpoint every five steps."""
    return [str(EXAMPLES / "train.py"), "--steps", str(steps), "--every", "5", "--directory", str(directory)]


def test_a_killed_training_resumes_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    """A run that is killed continues from its last save, and ends as one that was never interrupted."""
    killed = subprocess.Popen(
        [sys.executable, *train(tmp_path / "killed", 10**9)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    with killed, killed.stdout:
        assert killed.stdout.readline().startswith("step 5: ")
        assert killed.stdout.readline().startswith("step 10: ")  # the save of step 5 is committed
        killed.send_signal(signal.SIGKILL)
    steps = 100
    resumed = command(*train(tmp_path / "killed", steps), cwd=tmp_path)
    assert re.match(r"resumed at step (5|10|15|20)\n", resumed)
    assert "resumed" not in command(*train(tmp_path / "whole", steps), cwd=tmp_path)
    one, other = (ckpt.load(tmp_path / name / "latest") for name in ("whole", "killed"))
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert names == {"latest", "step-000000090", "step-000000095", "step-000000100"}


def test_a_signalled_training_ends_and_resumes_after_its_last_step(tmp_path: Path) -> None:
    """It ends by itself, with the exit code for another run, which goes on from the last save."""
    signalled = subprocess.Popen(
        [sys.executable, *train(tmp_path / "run", 10**9)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert signalled.stdout is not None
    with signalled, signalled.stdout:
        output = signalled.stdout.readline() + signalled.stdout.readline()  # the save of step 5 is committed
        signalled.send_signal(signal.SIGUSR2)
        output += signalled.stdout.read()
    assert signalled.returncode == os.EX_TEMPFAIL
    last = int(re.findall(r"^step (\d+): ", output, re.MULTILINE)[-1])
    resumed = command(*train(tmp_path / "run", last + 10), cwd=tmp_path)
    assert resumed.startswith(f"resumed at step {last}\n")


def run(name: str, cwd: Path) -> Path:
    """Run a study of the examples with a part of its model and one round; the results' directory."""
    small = cwd / f"{name}.toml"
    text = (EXAMPLES / f"{name}.toml").read_text()
    assert 'model = "llama-15m"' in text
    small.write_text(
        text.replace('model = "llama-15m"', 'model = "llama-15m"\ntensors = 3').replace("rounds = 3", "rounds = 1")
    )
    homes = {variable: cwd / variable.lower() for variable in ("HOME", "SCRATCH")}
    for home in homes.values():
        home.mkdir()
    cluster = "local" if "tasks_per_node" in text else "debug"
    environment = {variable: str(home) for variable, home in homes.items()}
    command("-m", "jobs", "run", small, "--cluster", cluster, cwd=cwd, **environment)
    return cwd / "results" / name


@pytest.mark.parametrize(("name", "count"), [("compare-strategies", 3), ("compare-targets", 4), ("many-ranks", 2)])
def test_studies_run(name: str, count: int, tmp_path: Path) -> None:
    """Each study completes all of its jobs."""
    jobs = analysis.load_results(run(name, tmp_path)).jobs
    assert ["complete"] * count == list(jobs["status"])


def test_pandas_example_gives_the_bandwidth_of_all_ranks(tmp_path: Path) -> None:
    """From a merged file: bytes of all ranks, over the time from the first start to the last end; medians of trials."""
    logs = tmp_path / "results" / "study" / "logs"
    alone = LogBuilder(job("torch_save"))
    for seconds in (2.0, 1.0, 9.0):
        alone.trial(save=seconds)
    alone.trial(save=100.0, warmup=True)
    alone.write(logs / "alone.h5")
    LogBuilder(job("torch_dcp", tasks=2)).trial(save=[1.0, 4.0 - COMMIT_S]).write(logs / "ranks.h5")
    command("-m", "analysis", "merge", logs.parent, "-o", "merged.h5", cwd=tmp_path)
    rows = [line.split() for line in command(EXAMPLES / "analyse.py", "merged.h5", cwd=tmp_path).splitlines()[2:]]
    expected = [["torch_dcp", "4.0", f"{GIB / 4e9:.3f}"], ["torch_save", "2.0", f"{GIB / 2e9:.3f}"]]
    assert expected == [row[-3:] for row in rows]
