"""What keeps jobs from starting, or from being submitted: each cause staged on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slurm


@contextmanager
def drained(site: Any) -> Iterator[None]:
    """An administrator has drained all nodes."""
    site.ask("scontrol", "update", "nodename=ALL", "state=drain", "reason=maintenance")
    try:
        yield
    finally:
        site.ask("scontrol", "update", "nodename=ALL", "state=resume")


@contextmanager
def reserved(site: Any) -> Iterator[None]:
    """All nodes are reserved for maintenance, from now on."""
    site.ask(
        "scontrol", "create", "reservation", "ReservationName=upkeep", "StartTime=now", "Duration=60", "Users=root",
        "Nodes=ALL", "Flags=maint,ignore_jobs",
    )  # fmt: skip
    try:
        yield
    finally:
        site.ask("scontrol", "delete", "ReservationName=upkeep")


@contextmanager
def spent(site: Any) -> Iterator[None]:
    """The account has no CPU time left."""
    site.ask("sacctmgr", "-i", "modify", "account", "proj", "set", "GrpTRESMins=cpu=0")
    try:
        yield
    finally:
        site.ask("sacctmgr", "-i", "modify", "account", "proj", "set", "GrpTRESMins=cpu=-1")


@contextmanager
def broken_prolog(site: Any) -> Iterator[None]:
    """What nodes run before a job fails: Slurm drains the node, and queues the job again, held."""
    prolog = Path(site.environment["DEVCLUSTER_ROOT"]) / "etc" / "prolog"
    content = prolog.read_text()
    prolog.write_text(
        content.replace("#!/bin/sh\n", '#!/bin/sh\n[ "$SLURM_SCRIPT_CONTEXT" != prolog_slurmd ] || exit 1\n')
    )
    try:
        yield
    finally:
        prolog.write_text(content)
        for node in site.ask(
            "sinfo", "--noheader", "--Node", "--partition=lax", "--states=drain", "--format=%N"
        ).split():
            site.ask("scontrol", "update", f"nodename={node}", "state=resume")


@pytest.mark.each_slurm
@pytest.mark.parametrize(
    ("cause", "state", "words"),
    [
        (drained, "waiting", "Nodes required for job are DOWN, DRAINED or reserved"),
        (reserved, "waiting", "ReqNodeNotAvail, Reserved for maintenance"),
        (spent, "stuck", "AssocGrpCPUMinutesLimit: the budget is used up"),
        (broken_prolog, "stuck", "`scontrol release"),
    ],
    ids=["drained", "reserved", "no budget left", "failed prolog"],
)
def test_why_a_job_does_not_start(
    cause: Any, state: str, words: str, strict_site: Any, home: Path, write_site_study: Callable[..., Path]
) -> None:
    """The state says whether patience helps, and the detail what Slurm says and, where nothing starts, what to type."""
    study = write_site_study("kept", slurm='account = "proj"\npartition = "lax"', repeats=1)
    with cause(strict_site):
        sent = strict_site.jobs("submit", study, "--results", home)
        assert 0 == sent.returncode, sent.stdout + sent.stderr

        def told() -> Any:
            (job,) = json.loads(strict_site.jobs("status", home / "kept", "--json").stdout)
            return job if job["state"] == state and words in job["detail"] else None

        strict_site.wait(f"{state}: {words}", told, 60)
        strict_site.jobs("cancel", home / "kept")


@pytest.mark.parametrize("room", ["8k", "64k"])
def test_results_on_a_full_filesystem(
    room: str, cluster: Any, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    """Before the plan or amid what submitit writes for Slurm: one message names the directory; nothing is queued."""
    if os.geteuid():
        (pytest.fail if os.environ.get("CKPT_REQUIRE_ALL") else pytest.skip)("mounting needs root")
    study, results = write_study("full", rounds=30), tmp_path / "results"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", results], check=True)
    try:
        done = cluster.jobs("submit", study, "--results", results)
    finally:
        subprocess.run(["umount", results], check=True)
    assert 2 == done.returncode, done.stdout
    assert str(results) in done.stderr
    assert "its filesystem is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert "" == cluster.ask("squeue", "--noheader", "--name=ckpt-full")


def test_a_request_that_no_node_can_meet(strict_site: Any, home: Path, write_site_study: Callable[..., Path]) -> None:
    """Slurm's test can't tell it from nodes that are drained; the submission can, and it is one message."""
    study = write_site_study("nowhere", slurm='account = "proj"\npartition = "lax"\nconstraint = "gpu&cpu"')
    done = strict_site.jobs("submit", study, "--results", home)
    assert 2 == done.returncode
    assert "Slurm did not take the job: " in done.stderr
    assert "Requested node configuration is not available" in done.stderr
    assert "correct the keys below [slurm]" in done.stderr
