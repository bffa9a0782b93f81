"""Studies at a strict site: mandatory accounts, limits, submit filters, GPUs, little memory, no privileges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

WriteStudy = Callable[..., Path]


def test_another_user_than_slurms_runs_a_study(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """With an account and a time limit a strict site's jobs run as the user's, and she can read what they left."""
    study = write_site_study("own", slurm='account = "proj"')
    done = strict_site.jobs("run", study, "--results", home)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert {2001} == {path.stat().st_uid for path in (home / "own" / "logs").iterdir()}
