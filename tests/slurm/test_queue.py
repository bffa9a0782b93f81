"""What a cluster answers about jobs, at a site with users, limits and a controller that is not always there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
DEVCLUSTER = ROOT / "slurm" / "devcluster" / "devcluster"

WATCHED_S = 20

pytestmark = pytest.mark.slurm

WriteStudy = Callable[..., Path]

LAX = 'account = "proj"\npartition = "lax"'


class Sent:
    """A study of alice's that was submitted, of one array."""

    def __init__(self, site: Any, study: Path, **variables: str) -> None:
        self.site, self.study, self.root = site, study, study.parent / study.stem
        done = site.jobs("submit", study, "--results", study.parent, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        self.array = self.numbers()[0].partition("_")[0]

    def numbers(self) -> list[str]:
        """Slurm's numbers of the jobs, in the plan's order."""
        sent = json.loads((self.root / "slurm" / "submissions.json").read_text())
        return [submission["scheduler_id"] for submission in sent]

    def states(self, **options: Any) -> list[str]:
        """The jobs' states by `status`."""
        return [job["state"] for job in self.status(**options)]

    def status(self, **options: Any) -> list[dict[str, Any]]:
        """What `status --json` prints."""
        found: list[dict[str, Any]] = json.loads(self.site.jobs("status", self.root, "--json", **options).stdout)
        return found

    def until_measuring(self) -> None:
        """Wait until a job has done a trial: from then on it heeds signals."""
        self.site.wait("a trial", lambda: any(job["trials_done"] for job in self.status()))

    def until(self, state: str) -> dict[str, Any]:
        """Wait until a job is in this state."""
        status: dict[str, Any] = self.site.wait(
            state, lambda: next((job for job in self.status() if job["state"] == state), None)
        )
        return status


@contextmanager
def silent_controller(site: Any) -> Iterator[None]:
    """The controller answers nobody meanwhile."""
    process = int((Path(site.environment["DEVCLUSTER_ROOT"]) / "pid" / "slurmctld").read_text().split()[0])
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def requests(site: Any) -> dict[str, int]:
    """What users have asked of the controller since its statistics were reset, by kind."""
    table = site.ask("sdiag").partition("statistics by message type")[2].partition("statistics by user")[0]
    counts = {}
    for line in table.splitlines():
        if line.strip().startswith("REQUEST_"):
            kind, _, rest = line.strip().partition(" ")
            counts[kind] = int(rest.partition("count:")[2].split()[0])
    return counts


def test_a_silent_controller_sends_no_study_to_the_login_node(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """`run` refuses, with one message, and leaves nothing behind."""
    study = write_site_study("silent", slurm=LAX, targets=f'here = {{ path = "{home}" }}')
    with silent_controller(strict_site):
        done = strict_site.jobs("run", study, "--results", home)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Slurm is installed here and does not answer" in done.stderr
    assert "--cluster local" in done.stderr
    assert not (home / "silent").exists()


def test_jobs_are_known_by_their_numbers(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """Whatever $LOGNAME says, and whoever looks: running is running, and `submit` sends nothing twice.

    Another user can neither end the jobs nor add to them, and gets one message that says so.
    """
    sent = Sent(strict_site, write_site_study("shared", slurm=LAX, endless=True))
    sent.until_measuring()
    assert sent.states(user="bob") == ["running"]
    submit = ["submit", sent.study, "--results", home]
    again = strict_site.run_as(
        "alice", "env", "LOGNAME=bob", "USER=bob", sys.executable, "-m", "jobs", *submit
    )  # fmt: skip
    assert "0 of 1 jobs to run" in again.stdout, again.stdout + again.stderr
    of_bob = [strict_site.jobs(*command, user="bob") for command in (["cancel", sent.root], submit)]
    assert [(2, "")] * 2 == [(done.returncode, done.stdout) for done in of_bob]
    assert "Access/permission denied" in of_bob[0].stderr
    assert f"can't write to the results directory {sent.root}: Permission denied, or try" in of_bob[1].stderr
    assert [1, 1] == [len(done.stderr.splitlines()) for done in of_bob]
    assert sent.states() == ["running"]
    strict_site.jobs("cancel", sent.root)
    sent.until("interrupted")


@pytest.mark.each_slurm
def test_cancel_is_one_request_and_jobs_that_never_started_are_cancelled(
    strict_site: Any, write_site_study: WriteStudy
) -> None:
    """Of an array of which one job runs and the others wait: `scancel` of the array; each job is shown as cancelled."""
    sent = Sent(strict_site, write_site_study("many", slurm=LAX, endless=True, rounds=30))
    sent.until_measuring()
    strict_site.ask("sdiag", "--reset")
    strict_site.jobs("cancel", sent.root)
    assert requests(strict_site)["REQUEST_KILL_JOB"] == 1

    sent.until("interrupted")
    strict_site.wait("accounting", lambda: sent.states().count("cancelled") == 29)
    assert "CANCELLED by 2001, before it started" in {job["detail"] for job in sent.status()}


@pytest.mark.each_slurm
def test_a_limit_of_running_jobs_is_waiting(strict_site: Any, write_site_study: WriteStudy) -> None:
    """MaxJobs: AssocMaxJobsLimit is a job's turn that comes, a suspended one may go on; held ones are stuck."""
    study = write_site_study("turns", slurm=LAX + "\nexclusive = true", targets="nvme = {}", endless=True, rounds=3)
    with strict_site.limits(MaxJobs=1):
        sent = Sent(strict_site, study)
        sent.until("running")
        limited = strict_site.wait(
            "the limit", lambda: [job for job in sent.status() if job["detail"] == "AssocMaxJobsLimit"]
        )
        assert {job["state"] for job in limited} == {"waiting"}
        strict_site.ask("scontrol", "suspend", sent.numbers()[0])
        strict_site.wait("the suspended job", lambda: "SUSPENDED" in sent.status()[0]["detail"])
        assert sent.states()[0] == "waiting"
        strict_site.ask("scontrol", "resume", sent.numbers()[0])
        strict_site.ask("scontrol", "hold", sent.numbers()[2])
        assert "`scontrol release" in sent.until("stuck")["detail"]
        strict_site.ask("scontrol", "requeuehold", sent.numbers()[0])
        strict_site.wait("two that are held", lambda: sent.states().count("stuck") == 2)
        assert {"waiting", "running"} & set(sent.states())
        strict_site.jobs("cancel", sent.root)


@pytest.mark.each_slurm
def test_jobs_that_were_queued_without_an_answer_are_cancelled(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """sbatch times out after Slurm has queued the jobs: they are found and ended, and the next submission counts."""
    late = home / "bin" / "sbatch"
    late.parent.mkdir()
    late.write_text(
        f'#!/bin/sh\n{shutil.which("sbatch")} "$@" || exit\ncase "$*" in *--test-only*) exit ;; esac\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1\n"
    )
    late.chmod(0o755)
    study = write_site_study("orphans", slurm=LAX, rounds=3, endless=True)
    path = f"{late.parent}:{strict_site.environment['PATH']}"
    done = strict_site.jobs("submit", study, "--results", home, PATH=path)
    assert done.returncode == 2
    assert "Socket timed out" in done.stderr
    assert "Slurm had queued jobs although their submission failed, and they are cancelled now: " in done.stdout

    sent = Sent(strict_site, study)
    queue = strict_site.ask("squeue", "--noheader", "--name=ckpt-orphans", "--format=%F|%T").split()
    assert {row.partition("|")[0] for row in queue if "COMPLETING" not in row} == {sent.array}
    strict_site.jobs("cancel", sent.root)


def test_run_asks_the_controller_a_few_times_a_minute(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """While a job measures, trial after trial: a few questions, about it alone."""
    study = write_site_study("quiet", slurm=LAX, endless=True)
    # A test run that a script started in the background has SIGINT ignored, and so have its children.
    heeding = ["env", "--default-signal=INT"]
    command = [DEVCLUSTER, "as", "alice", *heeding, sys.executable, "-m", "jobs", "run", study, "--results", home]
    with subprocess.Popen(command, env=strict_site.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            assert any("running" in line for line in run.stdout)
            strict_site.ask("sdiag", "--reset")
            time.sleep(WATCHED_S)
            asked = requests(strict_site)
            strict_site.wait("a question", lambda: "REQUEST_JOB_INFO_SINGLE" in requests(strict_site))
        finally:
            run.send_signal(signal.SIGINT)
            strict_site.jobs("cancel", home / "quiet")
        assert "stopped: queued jobs stay" in run.stdout.read()

    assert asked.get("REQUEST_JOB_INFO_SINGLE", 0) <= 5  # maybe none in these seconds, but then in the next ones
    assert sum(number for kind, number in asked.items() if "INFO" in kind) <= 10
    assert "REQUEST_FED_INFO" not in asked


def test_a_log_that_appears_late_is_waited_for(strict_site: Any, write_site_study: WriteStudy) -> None:
    """As on NFS: Slurm says COMPLETED, and the log isn't there yet: the job isn't lost, and nothing is sent again."""
    sent = Sent(strict_site, write_site_study("late", slurm=LAX, repeats=1))
    job = sent.until("complete")
    strict_site.wait("an empty queue", lambda: not strict_site.ask("squeue", "--noheader", "--name=ckpt-late"))
    log = Path(job["log"])
    hidden = log.rename(log.with_suffix(".hidden"))
    assert "is not visible here yet" in sent.until("ending")["detail"]
    hidden.rename(log)
    assert sent.states() == ["complete"]


def test_a_job_that_takes_more_memory_than_it_asked_for_says_so(strict_site: Any, write_site_study: WriteStudy) -> None:
    """Where Slurm counts memory and ends a job beyond its share, the study says what to write."""
    slurm = 'account = "proj"\npartition = "lax"\nmem_gb = 0.1'
    sent = Sent(strict_site, write_site_study("memory", slurm=slurm, vocabulary=500_000))
    assert "raise `mem_gb` below [slurm]" in sent.until("lost")["detail"]


def test_who_may_not_see_a_job_is_not_shown_it_as_lost(strict_site: Any, write_site_study: WriteStudy) -> None:
    """Where Slurm hides jobs from other users: alice sees hers, bob what accounting tells, or that he can't know."""
    study = write_site_study("hidden", slurm=LAX, endless=True, rounds=2)
    database = Path(strict_site.environment["DEVCLUSTER_ROOT"]) / "etc" / "slurmdbd.conf"
    open_to_all = database.read_text()
    with strict_site.configured("PrivateData=jobs"):
        sent = Sent(strict_site, study)
        sent.until_measuring()
        assert sent.states() == ["running", "waiting"]
        strict_site.wait("accounting", lambda: sent.states(user="bob") == ["running", "waiting"])
        database.write_text(open_to_all + "PrivateData=jobs\n")
        strict_site.ask("sacctmgr", "-i", "reconfigure")
        try:
            hidden = sent.status(user="bob")
            refused = strict_site.jobs("cancel", sent.root, user="bob")
            strict_site.jobs("cancel", sent.root)
            sent.until("interrupted")
            ended = sent.status(user="bob")[0]
        finally:
            database.write_text(open_to_all)
            strict_site.ask("sacctmgr", "-i", "reconfigure")

    whose = "Slurm hides alice's jobs from other users here; alice can see their states by `status`"
    assert [("unknown", whose)] * 2 == [(job["state"], job["detail"]) for job in hidden]
    assert (refused.returncode, refused.stderr) == (2, f"error: can't cancel: {whose}\n")
    assert ended["state"] == "unknown"
    assert ended["detail"].startswith("its log is interrupted: ")
    assert ended["detail"].endswith(f"; whether it runs again is not known: {whose}")


@pytest.mark.each_slurm
def test_a_controller_that_limits_requests(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """Of each user it takes two requests at once and then one a second: commands take longer, and nothing else."""
    if strict_site.version < (23, 2):
        pytest.skip("the controller limits requests since Slurm 23.02")
    study = write_site_study("limited", slurm=LAX, repeats=100_000, rounds=60)
    controller = Path(strict_site.environment["DEVCLUSTER_ROOT"]) / "log" / "slurmctld.log"
    earlier = controller.stat().st_size
    with strict_site.configured("SlurmctldParameters=rl_enable,rl_bucket_size=2,rl_refill_rate=1"):
        submitted = strict_site.jobs("submit", study, "--results", home)
        shown = [strict_site.jobs("status", home / "limited") for _ in range(2)]
        ended = strict_site.jobs("cancel", home / "limited")

    assert [0] * 4 == [done.returncode for done in (submitted, *shown, ended)], (submitted, shown, ended)
    assert [""] * 4 == [done.stderr for done in (submitted, *shown, ended)]
    assert "submitted\n" in submitted.stdout
    assert "60 jobs: " in shown[1].stdout
    assert "unknown" not in shown[1].stdout
    assert 60 == ended.stdout.count("torch_save")
    assert "RPC rate limit exceeded by uid 2001" in controller.read_bytes()[earlier:].decode()
