"""A command on one of the nodes that an array's jobs ask for, before any of them is submitted."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.cluster import slurm
from jobs.cluster.refusals import words
from jobs.cluster.submit import clean_environment
from jobs.errors import StudyError
from jobs.plan.slurm_table import Slurm

_WAIT_S = 90
"""How long a compute node may take to become free."""

_ANSWER_S = 60
"""And how long, then, to answer."""

_BUSY = re.compile(r"nodes are busy|revoked|Immediate execution|Connection timed out")

_TINY = ("--nodes=1", "--ntasks=1", "--time=5", "--job-name=ckpt-check", "--export=ALL")

_ASIDE, _START = "exec 3<&0 4>&1 </dev/null >&2", 'exec "$@" <&3 >&4 3<&- 4>&-'
"""Around `setup`, which reads nothing of the question then, and prints nothing into the answer."""

_STREAMS = {"<": "question", ">": "answer", "2>": "error"}
"""The files of a batch job."""


class NoNodeError(StudyError):
    """Slurm has no node for the command now, or starts none for it; so nothing is known."""


class NodeError(StudyError):
    """The command failed on a node."""


def ask_node(request: Slurm, options: Sequence[str], command: Sequence[str], question: str, shared: Path) -> str:
    """The standard output of a command on a node; by a batch job where the site starts no interactive ones.

    Args:
        request: what jobs ask for; the command starts after its `setup`, and with its `srun_args`, as they do.
        options: of srun and sbatch, for the node.
        command: the program and its arguments.
        question: its standard input.
        shared: a directory for a batch job's files, which nodes see.

    Raises:
        NoNodeError: if Slurm starts it nowhere, with the reason.
        NodeError: if it fails there.
    """
    srun_args, setup = request.srun_args or (), request.setup or ()
    started = ["bash", "-c", "\n".join([_ASIDE, *setup, _START]), "bash", *command] if setup else command
    srun = ["srun", *_TINY, f"--immediate={_WAIT_S}", *options, *srun_args, *started]
    with clean_environment():
        try:
            done = subprocess.run(
                srun, input=question, capture_output=True, text=True, check=False, timeout=_WAIT_S + _ANSWER_S
            )
        except subprocess.TimeoutExpired:
            raise NoNodeError(f"no compute node answered within {_WAIT_S + _ANSWER_S} s") from None
        if done.returncode == 0:
            return done.stdout
        if "Unable to allocate resources" not in done.stderr:
            raise NodeError(_reason(done.stderr))
        refused = words(done.stderr)
        if _BUSY.search(refused):
            raise NoNodeError(f"no compute node was free within {_WAIT_S} s: {refused}")
        step = shlex.join(["srun", "--export=ALL", *srun_args, *command])
        script = "\n".join(["#!/bin/bash", *setup, f"exec {step}"])
        return _ask_in_a_batch_job(options, script, question, shared, refused)


def _ask_in_a_batch_job(options: Sequence[str], script: str, question: str, shared: Path, refused: str) -> str:
    """What the last command of a script answers; its streams are added to it."""
    with tempfile.TemporaryDirectory(dir=shared, prefix=".ckpt-check-") as name:
        directory = Path(name)
        (directory / "question").write_text(question)
        streams = (f"{sign}{shlex.quote(f'{name}/{file}')}" for sign, file in _STREAMS.items())
        (directory / "script").write_text(f"{script} {' '.join(streams)}\n")
        sbatch = ["sbatch", "--wait", "--parsable", "--output=/dev/null", *_TINY, *options, str(directory / "script")]
        try:
            done = subprocess.run(
                sbatch, capture_output=True, text=True, check=False, timeout=_WAIT_S + _ANSWER_S, cwd=Path.cwd()
            )
        except subprocess.TimeoutExpired as error:
            _cancel(error.stdout)
            raise NoNodeError(
                f"Slurm starts no interactive job here ({refused}), and a batch job got no node within "
                f"{_WAIT_S + _ANSWER_S} s"
            ) from None
        if done.returncode == 0:
            return (directory / "answer").read_text()
        if not done.stdout.strip():
            raise NoNodeError(f"Slurm starts no job for this check: {words(done.stderr) or refused}")
        error_file = directory / "error"
        raise NodeError(
            _reason(error_file.read_text())
            if error_file.exists()
            else f"a batch job ended with exit code {done.returncode} and did not write to {shared}"
        )


def _cancel(printed: bytes | str | None) -> None:
    """End a batch job that nobody waits for any more."""
    text = printed.decode() if isinstance(printed, bytes) else printed or ""
    if number := re.match(r"\d+", text):
        slurm.ask("scancel", number[0])


def _reason(stderr: str) -> str:
    """Why a command failed on a node: its own last words, or Slurm's about it, before srun's."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return ([line for line in lines if not line.startswith("srun:")] or lines or ["it printed nothing"])[-1]
