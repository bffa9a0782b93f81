"""Facts about machine and software: all of them, or the reason why not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from jobs.node import provenance
from jobs.node.storage.facts import of_servers, of_storage


def test_facts_are_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fact is a number or text, so that a log can hold it, and tells of this process."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    facts = provenance.of_machine("", "{}")

    assert all(
        isinstance(value, int | float | str)
        for value in (facts | of_storage(Path("/")) | of_servers(Path("/"))).values()
    )
    assert (os.getpid(), sys.version.split()[0]) == (facts["process_id"], facts["python"])
    assert os.uname().nodename == facts["host"]
    assert len(os.sched_getaffinity(0)) == facts["cpus_usable"]
    assert facts["memory_bytes"] > 2**28
    assert torch.__version__.partition("+")[0] in json.loads(facts["packages"])["torch"]
    assert json.loads(facts["slurm"])["SLURM_JOB_ID"] == "17"


def test_a_missing_fact_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fact can't be had it is `unknown`, with the reason; the others are there."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    facts = provenance.of_machine("", "{}")

    assert "unknown (PackageNotFoundError" in json.loads(facts["packages"])["no-such-package"]
    assert not json.loads(facts["packages"])["numpy"].startswith("unknown")
    checkout = (Path(provenance.__file__).parents[2] / ".git").exists()
    assert ("unknown commit" if checkout else "no git checkout") in facts["code_version"]
