"""Preempted jobs go back to the queue, cancelled ones don't: by what Slurm 22.05 shows of both after SIGTERM."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.node.requeue import requeue_if_preempted

PREEMPTED = (
    "JobId=8 JobName=ckpt Requeue=1 JobState=RUNNING Reason=None PreemptTime=2026-11-26T11:43:25 SuspendTime=None"
)
CANCELLED = "JobId=8 JobName=ckpt Requeue=1 JobState=COMPLETING Reason=None PreemptTime=None SuspendTime=None"
IN_GRACE = PREEMPTED.replace("RUNNING", "COMPLETING")
LIMIT = PREEMPTED.replace("2026-11-26T11:43:25", "None")
ARRAY = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("shown", "environment", "requeued"),
    [
        (PREEMPTED, {"SLURM_JOB_ID": "8"}, ["requeue 8"]),
        (PREEMPTED, ARRAY, ["requeue 17_3"]),
        (CANCELLED, {"SLURM_JOB_ID": "8"}, []),
        (IN_GRACE, {"SLURM_JOB_ID": "8"}, []),
        (LIMIT, {"SLURM_JOB_ID": "8"}, []),
        (PREEMPTED, {}, []),
    ],
    ids=["preempted", "preempted in an array", "cancelled", "cancelled while preempted", "time limit", "no Slurm"],
)
def test_what_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, environment: dict[str, str], requeued: list[str]
) -> None:
    """Only a job that is being preempted and still runs; in an array that element alone."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\ncase "$*" in *show*) echo "{shown}" ;; *) echo "$*" >>{tmp_path}/calls ;; esac\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    calls = tmp_path / "calls"

    assert requeue_if_preempted("r01-torch_save-here-1x1", environment) == bool(requeued)
    assert (calls.read_text().splitlines() if calls.exists() else []) == requeued


@pytest.mark.parametrize("body", ["exit 1", None], ids=["refused", "not there"])
def test_a_slurm_that_refuses_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str | None
) -> None:
    """The log is written already: the job ends as it would have, and the journal says why it isn't requeued."""
    if body:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho 'requests are limited' >&2\n{body}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert not requeue_if_preempted("r01-torch_save-here-1x1", {"SLURM_JOB_ID": "8"})
    assert ("requests are limited" if body else "No such file") in "".join(capsys.readouterr())
