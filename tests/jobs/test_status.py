"""What a log and a cluster's word add up to."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import status, timing_log
from jobs.cluster.slurm_states import Ending, QueueState
from jobs.cluster.submissions import Submission
from jobs.job_status import JobStatus, derive
from jobs.plan import plan, study_file
from jobs.timing_log import TimingLog
from support.logs import SAMPLE, header_of

JOB = plan.make_plan(study_file.read(study_file.find("quick"))).jobs[0]
SENT = Submission(JOB.id, "slurm", "17_0", 0.0, "2026-01-02T03:04:05+00:00", "0.1.0 0123abc")
GONE, WAITING, RUNNING = QueueState("gone"), QueueState("waiting", "Priority"), QueueState("running", "node7")
UNKNOWN = QueueState("unknown", "squeue did not answer")


def log(of: str, error: str = "") -> TimingLog:
    """A log with one finished trial of 3e9 bytes: saved in 6 s, loaded in 2 s."""
    header = header_of(JOB, study="quick", status=of, error=error)
    samples = [
        replace(
            SAMPLE, operation=operation, duration_s=seconds, state_bytes=3_000_000_000, resident_fraction=0, cpu_s=0,
            peak_rss_bytes=0,
        )
        for operation, seconds in [("save", 6), ("load", 2)]
    ]  # fmt: skip
    return TimingLog(header=header, samples=samples)


CASES = {
    "never submitted": (None, None, None, "not submitted", ""),
    "in the queue": (None, SENT, WAITING, "waiting", "Priority"),
    "started, no log yet": (None, SENT, RUNNING, "running", "node7"),
    "measuring": (log("running"), SENT, RUNNING, "running", "node7"),
    "done": (log("complete"), SENT, GONE, "complete", ""),
    "done, the process not gone yet": (log("complete"), SENT, RUNNING, "complete", ""),
    "done by hand": (log("complete"), None, None, "complete", ""),
    "failed": (log("failed", "TrialError: no space"), SENT, GONE, "failed", "TrialError: no space"),
    "failed by hand": (log("failed", "TrialError: no space"), None, None, "failed", "TrialError: no space"),
    "failed, and submitted again": (log("failed", "TrialError: no space"), SENT, WAITING, "waiting", "Priority"),
    "interrupted": (log("interrupted", "time limit"), SENT, GONE, "interrupted", "time limit"),
    "interrupted, and running again": (log("interrupted", "time limit"), SENT, RUNNING, "running", "node7"),
    "killed before its log": (None, SENT, GONE, "lost", "left no log"),
    "killed while measuring": (log("running"), SENT, GONE, "lost", "log is not finished"),
    "no answer": (None, SENT, UNKNOWN, "unknown", "squeue did not answer"),
    "measuring, no answer": (log("running"), SENT, UNKNOWN, "unknown", "squeue did not answer"),
    "interrupted, no answer": (
        log("interrupted", "time limit"),
        SENT,
        UNKNOWN,
        "unknown",
        "its log is interrupted: time limit; whether it runs again is not known: squeue did not answer",
    ),
    "done, no answer": (log("complete"), SENT, UNKNOWN, "complete", ""),
    "never starts": (None, SENT, QueueState("stuck", "JobHeldUser: it is held"), "stuck", "JobHeldUser: it is held"),
}


@pytest.mark.parametrize(("logged", "sent", "where", "state", "detail"), CASES.values(), ids=CASES)
def test_derive(logged: Any, sent: Any, where: Any, state: str, detail: str) -> None:
    """A complete log is final; what is on its way comes before what an earlier run left; nothing is lost silently."""
    found = derive(JOB, logged and logged.progress(), sent, where, "/results/slurm")

    assert (JOB.id, state) == (found.job_id, found.state)
    assert detail in found.detail
    assert bool(detail) == bool(found.detail)
    assert (found.trials_done, found.trials) == (0 if logged is None else 1, 2)
    assert found.last_bandwidth_gbps == (None if logged is None else 1.5)
    sends_again = state not in {"complete", "waiting", "running", "stuck", "unknown"}
    assert status.missing([found]) == ({JOB.id} if sends_again else set())


def test_every_status_of_a_log_is_known() -> None:
    """Each status that a log can have leads to a state of its own when the job is gone."""
    logged = [timing_log.RUNNING, timing_log.COMPLETE, timing_log.FAILED, timing_log.INTERRUPTED]

    assert [derive(JOB, log(each).progress(), SENT, GONE, "").state for each in logged] == [
        "lost", "complete", "failed", "interrupted"
    ]  # fmt: skip


def test_cancelled_jobs_are_cancelled() -> None:
    """By Slurm's word, with a log that isn't finished or without one: no job is lost then; it is sent again."""
    ending = Ending("CANCELLED", "CANCELLED by 2001, before it started")
    for logged in (None, log("running").progress()):
        found = derive(JOB, logged, SENT, GONE, "", ending=ending)
        assert (found.state, found.detail) == ("cancelled", "CANCELLED by 2001, before it started")
        assert status.missing([found]) == {JOB.id}
    assert derive(JOB, log("interrupted", "SIGTERM").progress(), SENT, GONE, "", ending=ending).state == "interrupted"


def test_a_log_may_become_visible_late() -> None:
    """For 90 s after a job's exit, good or bad, its log may be late, and nothing is sent again; then the job is lost.

    Killed by a signal, it has left all that it will leave.
    """
    exits = {"COMPLETED, exit code 0:0, on node7": "COMPLETED", "FAILED, exit code 1:0, on node7": "FAILED"}
    for logged, detail in itertools.product((None, log("running").progress()), exits):
        ending = Ending(exits[detail], detail, exited=True)
        early, late = (derive(JOB, logged, SENT, GONE, "", ending=ending, ended_s=age) for age in (89, 91))
        assert (early.state, late.state) == ("ending", "lost")
        assert f"the job ended ({detail}), and the end of its log is not visible here yet" in early.detail
        assert status.missing([early, late]) == {JOB.id}
        assert status.missing([early]) == set()
    killed = Ending("FAILED", "FAILED, exit code 9:0, on node7")
    assert derive(JOB, None, SENT, GONE, "", ending=killed, ended_s=1).state == "lost"


@pytest.mark.parametrize(("quiet_s", "longest_s", "minutes"), [
    (599, 0, 0), (601, 0, 10), (3599, 1, 50), (3599, 360, 0), (3601, 360, 60), (1e5, 1e5, 0), (7200, float("nan"), 120),
])  # fmt: skip
def test_a_job_that_may_hang_says_so(quiet_s: float, longest_s: float, minutes: int) -> None:
    """A running job whose log is old, by ten of its longest trial and by ten minutes, has had no news for so long."""
    measuring = replace(log("running").progress(), longest_trial_s=longest_s)
    news = f"; no news for {minutes} min" if minutes else ""
    assert derive(JOB, measuring, SENT, RUNNING, "", quiet_s=quiet_s).detail == f"node7{news}"
    assert derive(JOB, replace(measuring, status="interrupted"), SENT, RUNNING, "", quiet_s=quiet_s).detail == "node7"
    assert derive(JOB, measuring, SENT, WAITING, "", quiet_s=quiet_s).detail == "Priority"


def test_a_job_that_ran_out_of_memory_says_so(tmp_path: Path) -> None:
    """What slurmstepd prints about memory comes before the job's own last line."""
    output = tmp_path / "17_0_0_log.err"
    output.write_text(
        "slurmstepd-node1: error: Exceeded job memory limit\nTraceback:\nKilled\nsrun: error: node1: task 0: Killed\n"
    )
    found = derive(JOB, None, SENT, GONE, "", ending=Ending("FAILED", "FAILED"), output=output)
    assert "raise `mem_gb` below [slurm]: slurmstepd-node1: error: Exceeded job memory limit" in found.detail
    output.write_text("srun: job 17 queued\nValueError: no\nsrun: error: node1: task 0: Exited with exit code 1\n")
    assert derive(JOB, None, SENT, GONE, "", output=output).detail.endswith("stderr is: ValueError: no")


def test_a_terminal_obeys_no_log() -> None:
    """What a log says of an error is shown without the characters that would move a cursor or change a colour."""
    found = derive(JOB, log("failed", "no\x1b[2J \x07space").progress(), SENT, GONE, "")
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    console.print(status.table([found]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "no[2J space" in shown
    assert "\x1b" not in shown


def test_a_long_id_fits_a_narrow_terminal() -> None:
    """At 80 columns no line of the table is longer; an id breaks before an option, and states are whole."""
    job = "r01-tensorstore_tuned+chunk_mib=64+compression=zstd+concurrency=128-shared_filesystem-16x8"
    running = JobStatus(job, "running", "waits for the barrier of the other ranks", 1, 2, 1.5, "log")
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(status.table([running]))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()

    assert max(map(len, lines)) <= 80
    rows = [line.split()[0] for line in lines[1:-1]]
    assert "".join(rows) == job
    assert all(row[0] in "+-" for row in rows[1:])
    assert "1.50 GB/s" in lines[1]
