"""Jobs on this machine, through submitit, one after the other: two at a time would disturb one another's measurements.

`local` runs a job in processes of its own, `debug` in this one.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from jobs.cluster.choice import ClusterName
from jobs.cluster.submissions import record
from jobs.errors import SubmissionError
from jobs.node.provenance import code_version
from jobs.node.run import run_submitted
from jobs.paths import StudyPaths
from jobs.plan.plan import Job, Plan

_POLL_S = 0.5
"""How soon the end of a job is seen where the kernel can't report it (before Linux 5.3)."""


def refuse_here(job: Job, cluster: ClusterName) -> None:
    """Make sure that this machine can be what a job asks for.

    Raises:
        SubmissionError: if it takes several nodes, or several processes where there is one.
    """
    if job.nodes > 1 and cluster == "local":
        raise SubmissionError(
            f"{job.id} takes {job.nodes} nodes, and --cluster local has one: use --cluster slurm, or `nodes = 1` below "
            "[slurm] (`make cluster` starts a Slurm of four nodes on this machine)"
        )
    if job.scale.processes > 1 and cluster == "debug":
        raise SubmissionError(
            f"{job.id} takes {job.scale.processes} processes, and --cluster debug has one: use --cluster local or slurm"
        )


class LocalRunner:
    """Runs jobs in the background, from the beginning of the `with` statement on; nothing has to drive it.

    At the end of the body no further job starts. A job that runs then is left alone.
    """

    def __init__(self, paths: StudyPaths, planned: Plan, jobs: Sequence[Job]) -> None:
        self._paths, self._plan, self._jobs = paths, planned, jobs
        self._version = code_version()
        self._stop, self._ended = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def has_ended(self) -> bool:
        """Whether the last job has ended.

        Raises:
            Exception: whatever kept a job from starting.
        """
        if self._error is not None:
            raise self._error
        return self._ended.is_set()

    def wait(self, seconds: float) -> None:
        """Wait until the last job has ended, but not longer."""
        if self._ended.is_set():
            time.sleep(seconds)
        else:
            self._ended.wait(seconds)

    def _run(self) -> None:
        try:
            for job in self._jobs:
                if self._stop.is_set():
                    return
                _wait_for(_start(self._paths, self._plan, job, "local", self._version))
        except Exception as error:  # noqa: BLE001  # the thread that watches raises it
            self._error = error
        finally:
            self._ended.set()


def run_in_this_process(paths: StudyPaths, planned: Plan, jobs: Sequence[Job]) -> None:
    """Run jobs here, one after the other; returns when the last one has ended."""
    version = code_version()
    for job in jobs:
        running = _start(paths, planned, job, "debug", version)
        with contextlib.suppress(SystemExit):  # how a job that isn't complete ends its process; the log has the reason
            running.results()


def _wait_for(running: Any) -> None:
    """Wait, asleep, until a local job has ended."""
    with contextlib.suppress(OSError):  # it has ended already; or a kernel before 5.3
        process = os.pidfd_open(int(running.job_id))
        try:
            select.select([process], [], [])
        finally:
            os.close(process)
    while not running.done():
        time.sleep(_POLL_S)


def _python_that_sees_devices() -> list[str]:
    """What runs a job's Python with the GPUs that its user's programs see: submitit hides them from local jobs."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    again = ["-u", "CUDA_VISIBLE_DEVICES"] if seen is None else [f"CUDA_VISIBLE_DEVICES={seen}"]
    return ["env", *again, sys.executable]


@contextlib.contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """What starts meanwhile gets no SIGINT: it would end submitit's controller with a traceback. A job lets it in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(paths: StudyPaths, planned: Plan, job: Job, cluster: ClusterName, version: str) -> Any:
    import submitit

    refuse_here(job, cluster)
    if cluster == "debug":
        executor = submitit.DebugExecutor(paths.slurm)
    else:
        executor = submitit.LocalExecutor(paths.slurm, python=shlex.join(_python_that_sees_devices()))
        # submitit's own limit for a local job is two minutes.
        executor.update_parameters(
            timeout_min=planned.study.slurm.timeout_min or 60, tasks_per_node=job.scale.processes
        )
    with _ctrl_c_kept_from_children():
        started = executor.submit(run_submitted, str(paths.root), job.id, version)
    record(paths, cluster, [(job.id, started.job_id)], version)
    return started
