"""A filesystem that fails under a job: what its log holds, what it prints, and what it leaves.

strace makes calls fail on the files of one trial, or of the log; to the job, the errors are the kernel's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import leftovers
from jobs import timing_log
from jobs.node import targets
from jobs.node.run import run_submitted
from jobs.paths import StudyPaths
from jobs.timing_log import Sample, TimingLog
from support.faults import in_a_traced_child, require_strace
from support.one_job import Planned, only_job, run_only

TOKEN = "0123456789abcdef"

WRITES = "write,pwrite64,writev"
RENAMES = "rename,renameat,renameat2"


@dataclass(frozen=True)
class Faulty:
    """The job of a study of one, whose files have names that are known before."""

    paths: StudyPaths
    target: Path
    work: Path

    @property
    def log(self) -> Path:
        """The job's log."""
        return self.paths.log(only_job(self.paths).id)

    @property
    def partial(self) -> Path:
        """The log while it is written."""
        return self.log.with_name(f".{self.log.name}.{TOKEN}.partial")

    @property
    def scratch(self) -> Path:
        """Where its checkpoints lie."""
        return self.target / f"ckpt-{only_job(self.paths).id}-x" / "checkpoints"

    def checkpoint(self, name: str = "trial-1") -> list[Path]:
        """The paths of a checkpoint, before and after its commit."""
        final = self.scratch / name
        return [path for above in (leftovers.new_path(final), final) for path in (above, above / "state.pth")]

    def run(self, calls: str, fault: str, on: list[Path]) -> tuple[str, TimingLog]:
        """Run the job while calls on some paths fail; what it printed, and its log. It ends with exit code 1."""
        trace, printed = self.work / "strace", self.work / "printed"

        def submitted() -> None:
            descriptor = os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for number in (1, 2):
                os.dup2(descriptor, number)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: PTH123, SIM115
            run_submitted(str(self.paths.root), only_job(self.paths).id, "")

        outcome = in_a_traced_child(submitted, {calls: fault}, on, trace)
        assert "(INJECTED)" in trace.read_text(), "no call was made to fail"
        assert outcome == "SystemExit: 1", printed.read_text()
        assert "Traceback" not in printed.read_text()
        return printed.read_text(), timing_log.read(self.log)


@pytest.fixture
def faulty(
    tiny: dict[str, Any], planned: Planned, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Faulty]:
    """A job of two trials, which has run without a fault: a fork of this process has everything imported."""
    require_strace()
    monkeypatch.setattr(leftovers.secrets, "token_hex", lambda _: TOKEN)

    def made(prefix: str, dir: Path) -> str:  # noqa: A002  # as tempfile calls it
        path = dir / f"{prefix}x"
        path.mkdir()
        return str(path)

    monkeypatch.setattr(targets.tempfile, "mkdtemp", made)

    def make(**content: Any) -> Faulty:
        quick = {"repeats": 2, "warmups": 0, "ceiling": False, "metadata": False}
        paths = planned(tiny | {"trials": quick} | content)
        assert "complete" == run_only(paths).header.status
        job = Faulty(paths, target, tmp_path)
        job.log.unlink()
        return job

    return make


def operations(samples: list[Sample]) -> list[tuple[int, str, bool]]:
    """The trial, the phase or operation, and the validity of every sample."""
    return [(s.trial, s.phase if s.operation == "save" else s.operation, s.valid) for s in samples]


WHOLE = [(0, name, True) for name in ("call", "sync", "commit", "total", "load", "load")]

FAILS = [
    pytest.param(WRITES, "error=ENOSPC:when=1+", "save, call: No space left on device", 2, id="full"),
    pytest.param("fsync", "error=EIO:when=1", "save, sync: OSError: [Errno 5] Input/output error", 3, id="fsync"),
    pytest.param(RENAMES, "error=EIO:when=1", "save, commit: CheckpointError: can't rename ", 4, id="rename"),
    pytest.param(
        "mkdir,mkdirat", "error=EDQUOT:when=1", "save: CheckpointError: can't write a checkpoint into ", 0, id="mkdir"
    ),
    pytest.param("close", "error=EIO:when=1", "save, ", 2, id="close"),
    pytest.param("read,pread64", "error=EIO:when=1+", "cold load: ", 5, id="read"),
    pytest.param("unlinkat,rmdir", "error=EIO:when=1", "removal of its checkpoint: OSError: [Errno 5]", 6, id="unlink"),
]


@pytest.mark.parametrize(("calls", "fault", "message", "samples"), FAILS)
def test_a_trial(calls: str, fault: str, message: str, samples: int, faulty: Callable[..., Faulty]) -> None:
    """The job fails, with one message that names the trial, the operation and the error; the trial before stays."""
    job = faulty()
    printed, log = job.run(calls, fault, job.checkpoint())
    assert "failed" == log.header.status
    assert log.header.error.startswith(f"TrialError: trial 1, {message}"), log.header.error
    assert [f"{only_job(job.paths).id}: failed {log.header.error}"] == [
        line[9:] for line in printed.splitlines() if ": failed " in line
    ]
    assert WHOLE == operations(log.samples)[:6]
    assert samples == len(log.samples[6:])
    if samples < 5:
        assert not any(sample.valid for sample in log.samples[6:])
    assert [] == list(job.target.iterdir())


def test_the_sync_of_a_directory(faulty: Callable[..., Faulty]) -> None:
    """A checkpoint whose name may be lost in a power cut is none, although it lies there."""
    job = faulty()
    _, log = job.run("fsync", "error=EIO:when=2", [job.scratch])
    assert "failed" == log.header.status
    assert log.header.error.startswith("TrialError: trial 1, save, commit: CheckpointError: "), log.header.error
    assert "could not be synced ([Errno 5] Input/output error)" in log.header.error
    assert [*WHOLE, *((1, name, False) for name in ("call", "sync", "commit", "total"))] == operations(log.samples)


@pytest.mark.parametrize(
    ("calls", "fault", "name", "message", "samples"),
    [
        (WRITES, "error=ENOSPC:when=1", "made-by-ckpt-study", "takes no directory for the job: No space left", 0),
        ("unlinkat,rmdir", "error=EIO:when=2", "", "what the job wrote can't be removed (Input/output error)", 12),
    ],
    ids=["begin", "end"],
)
def test_the_directory_of_the_job(
    calls: str, fault: str, name: str, message: str, samples: int, faulty: Callable[..., Faulty]
) -> None:
    """The message names the target, and what could not be done there; what was measured stays."""
    job = faulty()
    _, log = job.run(calls, fault, [job.scratch.parent / name])
    assert "failed" == log.header.status
    assert log.header.error.startswith("TargetError: target 'here'")
    assert message in log.header.error, log.header.error
    assert [samples, samples] == [len(log.samples), sum(sample.valid for sample in log.samples)]


def test_a_save_of_a_loop(faulty: Callable[..., Faulty], loop_study: Callable[..., dict[str, Any]]) -> None:
    """The job fails, with one message that names the block, the phase and the error; the blocks before stay."""
    job = faulty(**loop_study("sync", every=[2], blocks=1))
    _, log = job.run(
        "fsync", "error=EIO:when=1", [*job.checkpoint("block-1-save-0"), *job.checkpoint("block-2-save-0")]
    )
    *before, last = log.blocks
    assert ("failed", f"TrialError: block {last.block}: {last.reason}") == (log.header.status, log.header.error)
    assert "sync: OSError: [Errno 5] Input/output error" == last.reason
    assert before
    assert all(block.valid for block in before)
    assert [False] == [save.valid for save in log.saves if save.block == last.block]


@pytest.mark.parametrize("call", ["fsync", RENAMES, WRITES], ids=["fsync", "rename", "write"])
@pytest.mark.parametrize("lasting", [True, False])
def test_the_log(call: str, lasting: bool, faulty: Callable[..., Faulty]) -> None:
    """The trial before stays in it. It ends as failed if it can be written again, and else has no end."""
    job = faulty()
    printed, log = job.run(call, f"error=EIO:when=3{'+' if lasting else ''}", [job.partial])
    why = f"can't write {job.log}: Input/output error"
    assert why in printed
    assert WHOLE == operations(log.samples)[:6]
    if lasting:
        assert ("running", 6) == (log.header.status, len(log.samples))
    else:
        assert ("failed", f"ResultsError: {why}") == (log.header.status, log.header.error)
    assert [job.log] == list(job.paths.logs.iterdir())
    assert [] == list(job.target.iterdir())


def test_a_log_that_cannot_be_read(faulty: Callable[..., Faulty]) -> None:
    """The job measures nothing, and leaves the log of an earlier run as it is: it isn't damaged."""
    job = faulty()
    job.run("fsync", "error=EIO:when=2", [job.scratch])
    before = job.log.read_bytes()
    printed, _ = job.run("openat", "error=ESTALE:when=1", [job.log])
    assert "Stale file handle" in printed
    assert "when its filesystem works again, submit the study again" in printed
    assert before == job.log.read_bytes()
    assert [job.log] == list(job.paths.logs.iterdir())
