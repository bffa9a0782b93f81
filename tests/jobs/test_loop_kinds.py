"""Jobs with each kind of step, and the quick study that is shipped, both reduced to what takes a second or two."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt.background import process
from jobs.node.loop import steps
from jobs.plan import study_file
from jobs.plan.loop import Loop
from support.loop_jobs import Planned, assert_whole, run_all

KINDS = ["compute", "launch", "memory"]


def test_a_job_with_each_kind_of_step(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that compute, copy, or make small calls are calibrated, on as many cores as asked for, and saved beside."""
    for name, small in {"_MATRIX": 64, "_COPIED_BYTES": 2**20, "_SMALL_CALLS": 10, "_CALIBRATION_S": 0.02}.items():
        monkeypatch.setattr(steps, name, small)
    content = loop_study("thread", step=KINDS, step_s=0.02, cores=1, every=[1], saves=1, blocks=1)
    logs = run_all(planned(content))

    assert KINDS == [json.loads(log.header.loop)["step"] for log in logs]
    for log in logs:
        assert_whole(log, Loop.model_validate(content["loop"]))
        assert log.provenance["loop_cores"] == 1
        assert log.provenance["loop_update_s"] > 0


def test_the_quick_study(tiny: dict[str, Any], planned: Planned, loop_study: Callable[..., dict[str, Any]]) -> None:
    """In every way its jobs are complete: `sync` holds its step until the commit, the others while they copy."""
    shipped = tomllib.loads(study_file.SHIPPED["training-loop-quick"].read_text())
    reduced = {"step_s": 0.02, "saves": 1, "blocks": 1}
    content = shipped | {
        "state": tiny["state"], "targets": tiny["targets"], "strategies": shipped["strategies"][1:],
        "trials": loop_study()["trials"], "loop": shipped["loop"] | reduced,
    }  # fmt: skip
    logs = {log.header.way: log for log in run_all(planned(content))}

    assert set(shipped["loop"]["ways"]) == set(logs)
    for way, log in logs.items():
        assert_whole(log, Loop.model_validate(content["loop"]))
        held_s = {(step.block, step.step): step.blocked_s for step in log.steps}
        for save in log.saves:
            assert way != "sync" or save.commit_s <= held_s[save.block, save.step]
            assert (save.snapshot_s > 0) == (way in {"thread", "process", "checkpointer"})


def test_the_process_writes_as_the_job_agreed(
    loop_study: Callable[..., dict[str, Any]], planned: Planned, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every save it gets the plan that the log has for the job's directory, and tries no filesystem itself."""
    sent: list[Any] = []
    pickled = process._pickled
    monkeypatch.setattr(process, "_pickled", lambda message: sent.append(message) or pickled(message))
    (log,) = run_all(planned(loop_study("process", blocks=1)))

    saves = [message for message in sent if isinstance(message, tuple)]
    assert len(saves) == len(log.saves) > 0
    for *_, plans in saves:
        agreed = [plan for where, plan in plans.items() if isinstance(where, Path) and target in where.parents]
        assert [str(plan) for plan in agreed] == [log.provenance["io_plan"]]
