"""What starts a job or a command from outside: names that other releases and installed scripts rely on."""

from __future__ import annotations

import pickle

from jobs.node.run import run_submitted


def test_a_job_queued_by_the_release_before_starts() -> None:
    """Submitit pickles the function by name, and the release before submitted `jobs.run.run_submitted`."""
    queued = b"cjobs.run\nrun_submitted\n."

    assert pickle.loads(queued) is run_submitted
