"""Jobs that don't end well, on a real Slurm: each is a visible cell with its reason, and never a hang."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log

pytestmark = pytest.mark.slurm

WriteStudy = Callable[..., Path]

SLOW = '[{ name = "_selftest", sleep_s = 0.2 }]'
"""Long enough for a request to reach the job before its last trial."""


def _directories(cluster: Any) -> set[Path]:
    nodes = Path(cluster.environment["DEVCLUSTER_ROOT"]) / "nodes"
    return {*Path(cluster.environment["DEVCLUSTER_SHARED"]).glob("ckpt-*"), *nodes.glob("*/nvme/ckpt-*")}


class Submitted:
    """One submitted study of one job, and what can be asked of it."""

    def __init__(self, cluster: Any, study: Path, results: Path) -> None:
        self.lay_there = _directories(cluster)
        done = cluster.jobs("submit", study, "--cluster", "slurm", "--results", results)
        assert done.returncode == 0, done.stdout + done.stderr
        self.cluster, self.study, self.results = cluster, study, results
        self.root = results / study.stem
        self.job_id = json.loads((self.root / "plan.json").read_text())["jobs"][0]["id"]

    @property
    def number(self) -> str:
        """Slurm's job id."""
        return str(json.loads((self.root / "slurm" / "submissions.json").read_text())[-1]["scheduler_id"])

    def log(self) -> timing_log.TimingLog | None:
        """The job's log, once there is one."""
        path = self.root / "logs" / f"{self.job_id}.h5"
        return timing_log.read(path) if path.exists() else None

    def trials(self) -> set[int]:
        """The trials in the log."""
        log = self.log()
        return {sample.trial for sample in log.samples} if log else set()

    def is_measuring(self) -> bool:
        """Whether some trials are in the log of the job, which must not have ended."""
        log = self.log()
        assert log is None or "running" == log.header.status, log.header.error
        return len(self.trials()) > 2

    def until_measuring(self) -> None:
        """Wait until some trials are in the log."""
        self.cluster.wait("a trial in the log", self.is_measuring)

    def until(self, *states: str) -> dict[str, Any]:
        """Wait until the job is in one of these states; its status."""
        return self.cluster.wait(
            f"state {states}", lambda: next((s for s in self.cluster.status(self.root) if s["state"] in states), None)
        )  # fmt: skip

    def node(self) -> str:
        """Where it runs."""
        return self.cluster.ask("squeue", "-h", "-j", self.number, "-o", "%N").strip()

    def processes(self) -> list[int]:
        """The job's Python processes, as the machine that plays all nodes sees them."""
        found = subprocess.run(
            ["pgrep", "-f", f"submitit.core._submit {self.root}/slurm"], capture_output=True, text=True, check=False
        )
        return [int(line) for line in found.stdout.split()]

    def leftovers(self) -> list[Path]:
        """The jobs' directories on all targets, but for what lay there before this one: other tests kill jobs too."""
        return sorted(_directories(self.cluster) - self.lay_there)

    def run_again(self) -> Any:
        """`run` the same study: only what is missing goes out; bounded by the timeout of `jobs`."""
        return self.cluster.jobs("run", self.study, "--cluster", "slurm", "--results", self.results)


def assert_named_everywhere(submitted: Submitted, state: str, words: str) -> None:
    """`status` and the tables name the job, its state and the reason; `status` and `run` end with 1."""
    done = submitted.cluster.jobs("status", submitted.root)
    assert 1 == done.returncode
    assert submitted.job_id in done.stdout
    assert state in done.stdout
    assert words in " ".join(done.stdout.split())


def test_time_limit_marks_the_log_interrupted_and_cleans_up(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """SIGUSR2 before the limit: the finished trials are in the log, the data is gone, and `run` ends with 1.

    The limit comes when the job measures, however long that takes: 600 s before it, so at Slurm's next look.
    """
    began_s = time.monotonic()
    study = write_study("limit", endless=True, slurm="timeout_min = 60\nsignal_delay_s = 600")
    job = Submitted(cluster, study, tmp_path)
    job.until_measuring()
    limit_min = int(time.monotonic() - began_s) // 60 + 3
    cluster.ask("scontrol", "update", f"jobid={job.number}", f"timelimit={limit_min}")
    done = job.run_again()

    assert 1 == done.returncode, done.stdout + done.stderr
    status = cluster.status(tmp_path / "limit")[0]
    assert "interrupted" == status["state"]
    assert "SIGUSR2" in status["detail"]
    log = timing_log.read(Path(status["log"]))
    assert {"interrupted"} == {log.header.status}
    assert len({s.trial for s in log.samples if s.operation == "load"}) > 2
    assert [] == job.leftovers()
    assert "interrupted: the time limit is near" in " ".join(done.stdout.split())


@pytest.mark.each_slurm
def test_scancel_marks_the_log_interrupted_and_a_second_submit_goes_on(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """scancel: interrupted, nothing left behind; the next submission adds the missing trials to the same log."""
    job = Submitted(cluster, write_study("cancelled", endless=True, targets="nvme = {}"), tmp_path)
    job.until_measuring()
    assert "cancelled: " + job.job_id in cluster.jobs("cancel", job.root).stdout

    assert "SIGTERM" in job.until("interrupted")["detail"]
    assert_named_everywhere(job, "interrupted", "SIGTERM")
    assert [] == job.leftovers()
    before = job.trials()
    again = cluster.jobs("submit", job.study, "--cluster", "slurm", "--results", tmp_path)
    assert "1 of 1 jobs to run" in again.stdout
    cluster.wait("more trials", lambda: job.trials() > before)
    cluster.jobs("cancel", job.root)
    job.until("interrupted")


def test_requeue_continues_with_the_missing_trials(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A requeued job's next run keeps what the first one measured and completes the log."""
    job = Submitted(cluster, write_study("requeued", strategies=SLOW, repeats=15), tmp_path)
    job.until_measuring()
    cluster.ask("scontrol", "requeue", job.number)
    kept = cluster.wait(
        "the job back in the queue", lambda: "PENDING" in cluster.ask("squeue", "-h", "-o", "%i %T") and job.trials()
    )

    assert "complete" == job.until("complete")["state"]
    log = job.log()
    assert log is not None
    assert kept <= job.trials()
    assert '"SLURM_RESTART_COUNT": "1"' in log.provenance["slurm"]
    loads = Counter(s.trial for s in log.samples if s.operation == "load" and not s.warmup)
    assert 15 == sum(count == 2 for count in loads.values())  # the requeue may have come between a trial's two loads


@pytest.mark.each_slurm
def test_a_preempted_job_is_requeued_and_a_cancelled_one_is_not(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """Preempted with time to tidy up, a job goes back to the queue and on; `scancel` in the same partition ends it."""
    study = write_study("preempted", endless=True, slurm="exclusive = true", targets=(
        'low = { path = "$DEVCLUSTER_SHARED", slurm = { partition = "preempt", nodelist = "node4" } }'
    ))  # fmt: skip
    job = Submitted(cluster, study, tmp_path)
    job.until_measuring()
    kept = job.trials()
    cluster.ask("sbatch", "-p", "nvme", "--nodelist=node4", "--exclusive", "--output=/dev/null", "--wrap=true")

    def restarted() -> bool:
        log = job.log()
        return log is not None and '"SLURM_RESTART_COUNT": "1"' in log.provenance["slurm"]

    cluster.wait("the job back on its node", restarted)
    cluster.wait("more trials", lambda: len(job.trials()) > len(kept))

    cluster.jobs("cancel", job.root)
    job.until("interrupted")
    assert "" == cluster.ask("squeue", "-h", "-p", "preempt")


def test_a_killed_process_is_a_lost_job_with_the_reason(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """SIGKILL, which is what the kernel sends when memory runs out: lost, with what accounting knows."""
    job = Submitted(cluster, write_study("killed", endless=True), tmp_path)
    job.until_measuring()
    for process in job.processes():
        subprocess.run(["kill", "-KILL", str(process)], check=False)

    status = job.until("lost")
    assert "FAILED" in status["detail"]
    assert "its log is not finished" in status["detail"]
    assert status["trials_done"] > 2
    assert_named_everywhere(job, "lost", "its log is not finished")
    # What it left behind goes when the job runs again.
    assert 1 == len(job.leftovers())
    cluster.jobs("submit", job.study, "--cluster", "slurm", "--results", tmp_path)
    job.until("running")
    cluster.wait("new trials", lambda: len(job.trials()) > status["trials_done"])
    cluster.jobs("cancel", job.root)
    job.until("interrupted")
    assert [] == job.leftovers()


def test_an_exception_in_a_strategy_is_told(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A file-size limit makes torch.save fail for real: failed, with the exception, in status and tables."""
    study = write_study("broken", slurm='setup = ["ulimit -f 100"]\nsrun_args = ["--propagate=FSIZE"]')
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 1 == done.returncode
    status = cluster.status(tmp_path / "broken")[0]
    assert "failed" == status["state"]
    assert "TrialError" in status["detail"]
    assert "failed" in done.stdout.split("Summary", 1)[1]


def test_unwritable_results_are_told(cluster_without_accounting: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """The logs' directory turns into something that can't be written: lost, with the last line of the job's stderr.

    With accounting, `status` would wait for a log that may be late.
    """
    study = write_study("unwritable", slurm='additional_parameters = { begin = "now+8" }')
    job = Submitted(cluster_without_accounting, study, tmp_path)
    logs = job.root / "logs"
    logs.rmdir()  # between submission and start; root may write anywhere, so permissions would stop nobody
    logs.write_text("not a directory")
    status = job.until("lost")

    assert "unwritable/logs" in status["detail"]
    assert ": Not a directory" in status["detail"], status
    again = job.run_again()
    assert 2 == again.returncode
    assert "can't write to the results directory" in again.stderr


def test_a_lost_node_requeues_the_job_and_a_killed_slurmd_does_not_matter(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """slurmd gone: the job goes on. Its node gone: Slurm runs it elsewhere, where it continues."""
    job = Submitted(cluster, write_study("nodeloss", endless=True), tmp_path)
    job.until_measuring()
    node = job.node()
    with cluster.configured("SlurmdTimeout=900"):  # else Slurm may give the node up before a slow machine's next trial
        cluster.control("kill-slurmd", node)
        try:
            before = job.trials()
            cluster.wait("trials without slurmd", lambda: len(job.trials()) > len(before) + 2)
            assert node == job.node()
        finally:
            cluster.control("restart-slurmd", node)

    cluster.control("crash", node)
    kept = job.trials()
    try:
        cluster.wait("the job on another node", lambda: job.node() not in {"", node})
        cluster.wait("more trials", lambda: job.trials() > kept)
    finally:
        cluster.control("revive", node)
    cluster.jobs("cancel", job.root)
    job.until("interrupted", "complete")


def test_a_lost_node_without_requeue_is_a_lost_job(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """Where the study forbids requeuing, the node's loss is the job's end, and `run` returns."""
    study = write_study("nodefail", endless=True, slurm='additional_parameters = {"no-requeue" = true}')
    job = Submitted(cluster, study, tmp_path)
    job.until_measuring()
    node = job.node()
    cluster.control("crash", node)
    try:
        status = job.until("lost")
    finally:
        cluster.control("revive", node)
    assert "NODE_FAIL" in status["detail"]
    assert status["trials_done"] > 2


def test_without_accounting_a_cancelled_job_is_seen_all_the_same(
    cluster_without_accounting: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """squeue alone tells that a job is gone: `status` and `run` don't hang where sacct is disabled."""
    cluster = cluster_without_accounting
    job = Submitted(cluster, write_study("noaccounting", endless=True), tmp_path)
    job.until_measuring()
    for process in job.processes():
        subprocess.run(["kill", "-KILL", str(process)], check=False)
    assert "its log is not finished" in job.until("lost")["detail"]

    study = write_study("nohang", slurm='setup = ["ulimit -f 100"]\nsrun_args = ["--propagate=FSIZE"]')
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)
    assert 1 == done.returncode
    assert "TrialError" in done.stdout
