"""Jobs whose ranks were started by something else than srun, and studies in an allocation of another batch system."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import timing_log
from jobs.cluster.interpreter import node_python
from jobs.paths import StudyPaths

ROOT = Path(__file__).parent.parent.parent

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def installed(command: str) -> str:
    """The path of a command; skips the test where it isn't installed, unless everything is required."""
    path = shutil.which(command)
    if path is None and os.environ.get("CKPT_REQUIRE_ALL"):
        pytest.fail(f"{command} is not installed, and CKPT_REQUIRE_ALL is set")
    return path or pytest.skip(f"{command} is not installed")


def test_an_address_that_a_killed_start_left(
    planned: Callable[[Mapping[str, Any]], StudyPaths], tiny: dict[str, Any], python: Any
) -> None:
    """MPICH's mpiexec gives its starts no number, so two ranks may find an old address first, and still meet."""
    paths = planned(tiny | {"slurm": {"tasks_per_node": 2}})
    job_id = "r01-torch_save-here-1x2"
    left = paths.slurm / f"{job_id}.hydra-.meeting"
    left.write_text(f"127.0.0.1 1 {'00' * 32}\n")
    left.chmod(0o600)
    done = subprocess.run(
        [installed("mpiexec.hydra"), "-n", "2", sys.executable, "-m", "jobs", "job", paths.root, job_id],
        env=python.environment(), cwd=python.cwd, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    log = timing_log.read(paths.log(job_id))
    assert ("complete", {0, 1}) == (log.header.status, {sample.rank for sample in log.samples})


FLUX = """\
#!/bin/sh
# flux run --nodes=1 --tasks-per-node=N COMMAND...: its tasks, with what Flux tells them
[ "$1 $2" = "run --nodes=1" ] || exit 64
tasks=${3#--tasks-per-node=} code=0
shift 3
export FLUX_JOB_ID="ƒ$$" FLUX_JOB_SIZE="$tasks" FLUX_JOB_NNODES=1
for rank in $(seq 0 $((tasks - 1))); do
  FLUX_TASK_RANK=$rank FLUX_TASK_LOCAL_ID=$rank "$@" &
  started="$started $!"
done
for task in $started; do wait "$task" || code=$?; done
exit $code
"""
PBS = {"PBS_JOBID": "17.server", "PBS_O_WORKDIR": str(ROOT)}
ARGUMENTS = ("{study}", "--results", "{results}")

BATCH_SYSTEMS = {
    "PBS, Open MPI": ("openmpi", PBS | {"CKPT_STUDY_ARGUMENTS": " ".join(ARGUMENTS)}, (), "/"),
    "PBS, MPICH": ("hydra", PBS, ARGUMENTS, "/"),
    "Flux": ("", {"FLUX_URI": "local:///run/flux/local"}, ARGUMENTS, ROOT),
}


@pytest.mark.parametrize(("mpi", "variables", "arguments", "cwd"), BATCH_SYSTEMS.values(), ids=BATCH_SYSTEMS)
def test_a_study_in_one_allocation_of_another_batch_system(
    mpi: str, variables: Mapping[str, str], arguments: tuple[str, ...], cwd: Path | str,
    tmp_path: Path, model: Path, target: Path,
) -> None:  # fmt: skip
    """Jobs of one rank and of two run, and the tables are printed.

    PBS and Flux are not here, only their variables, and a `flux` that starts processes on this machine.
    """
    commands = tmp_path / "commands"
    commands.mkdir()
    launcher = commands / ("mpiexec" if mpi else "flux")
    launcher.write_text(f'#!/bin/sh\nexec {installed(f"mpiexec.{mpi}")} "$@"\n' if mpi else FLUX)
    launcher.chmod(0o755)
    study = tmp_path / "one.toml"
    study.write_text(
        f'name = "one"\nstrategies = ["torch_save"]\n[state]\nmodel = "{model}"\n[targets.here]\npath = "{target}"\n'
        "allow_tmpfs = true\n[trials]\nrepeats = 2\nwarmups = 0\n[slurm]\ntasks_per_node = [1, 2]\n"
    )
    values = {"study": str(study), "results": str(tmp_path / "results")}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PBS_", "FLUX_"))}
    environment = inherited | AS_ROOT | {
        "PATH": f"{commands}:{os.environ['PATH']}", "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "CKPT_STUDY_PYTHON": f"env CKPT_WORD=1 {sys.executable}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment |= {key: value.format(**values) for key, value in variables.items()}
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "study.pbs", *(argument.format(**values) for argument in arguments)],
        env=environment, cwd=cwd, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    logs = [timing_log.read(path) for path in sorted((tmp_path / "results" / "one" / "logs").glob("*.h5"))]
    assert [("complete", 1), ("complete", 2)] == [(log.header.status, log.header.tasks_per_node) for log in logs]
    assert "torch_save" in done.stdout


def test_a_study_in_an_allocation_that_ends(tmp_path: Path, model: Path, target: Path) -> None:
    """A job that is interrupted is the last: what comes after it would have no time."""
    study = tmp_path / "cut.toml"
    study.write_text(
        f'name = "cut"\nrounds = 2\nstrategies = ["torch_save"]\n[state]\nmodel = "{model}"\n[targets.here]\n'
        f'path = "{target}"\nallow_tmpfs = true\n[trials]\nrepeats = 100000\n'
    )
    logs = tmp_path / "cut" / "logs"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PBS_", "FLUX_"))}
    environment = inherited | {
        "PBS_O_WORKDIR": str(ROOT), "CKPT_STUDY_PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with subprocess.Popen(
        ["bash", ROOT / "slurm" / "study.pbs", study, "--results", tmp_path],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as script:  # fmt: skip
        first = logs / "r01-torch_save-here-1x1.h5"
        while not (first.exists() and timing_log.read(first).samples):
            assert script.poll() is None
            time.sleep(0.1)
        (job,) = [child for child in psutil.Process(script.pid).children() if "job" in child.cmdline()]
        job.send_signal(signal.SIGTERM)
        output, _ = script.communicate(timeout=600)
    assert 1 == script.returncode
    assert "interrupted: run this again for the jobs that are missing" in output
    assert [first] == list(logs.iterdir())


def test_how_python_starts_on_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As here by default; else by a path, blanks included, or by a command of several words."""
    monkeypatch.delenv("CKPT_STUDY_PYTHON", raising=False)
    assert [sys.executable] == node_python()
    monkeypatch.setenv("CKPT_STUDY_PYTHON", "apptainer exec image.sif python3")
    assert ["apptainer", "exec", "image.sif", "python3"] == node_python()
    path = tmp_path / "my python"
    path.symlink_to(sys.executable)
    monkeypatch.setenv("CKPT_STUDY_PYTHON", str(path))
    assert [str(path)] == node_python()


@pytest.mark.parametrize("script", ["exec bash slurm/job.sbatch study", "source slurm/env.sh; start_ranks 1 2 $python"])
def test_variables_reach_the_ranks_of_a_job_that_was_submitted_without_any(script: str, tmp_path: Path) -> None:
    """After `sbatch --export=NONE` srun exports nothing unless it is told to: not $SCRATCH, nor what env.sh sets."""
    srun, rank = tmp_path / "srun", tmp_path / "rank"
    srun.write_text(
        '#!/bin/bash\nwhile [[ $1 = --* ]]; do [ "$1" != --export=ALL ] || SLURM_EXPORT_ENV=ALL; shift; done\n'
        '[ "$SLURM_EXPORT_ENV" = ALL ] || exec env -i "$@"\nexec "$@"\n'
    )
    rank.write_text('#!/bin/sh\necho "$SCRATCH $HDF5_USE_FILE_LOCKING"\n')
    for command in (srun, rank):
        command.chmod(0o755)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HDF5_"))}
    environment = inherited | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_EXPORT_ENV": "NONE",
        "CKPT_STUDY_HOME": str(ROOT), "CKPT_STUDY_PYTHON": str(rank), "SCRATCH": "/lustre/me",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    assert "/lustre/me BEST_EFFORT\n" == done.stdout
