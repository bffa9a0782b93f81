"""Studies at a strict site: mandatory accounts, limits, submit filters, GPUs, little memory, no privileges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import timing_log

pytestmark = pytest.mark.slurm

WriteStudy = Callable[..., Path]

ACCOUNT = 'account = "proj"'


def in_partition(name: str) -> str:
    """The shared directory as a target whose jobs go to that partition."""
    return f'shared = {{ slurm = {{ partition = "{name}" }} }}'


def queued(strict_site: Any) -> int:
    """How many jobs alice has in the queue."""
    return len(strict_site.run_as("alice", "squeue", "--noheader", "--array", "--me").stdout.splitlines())


def test_a_study_larger_than_the_limit_runs_to_its_end(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """Another user than Slurm's, an account that she exports, jobs that get almost no variables: `run` sends what
    fits, says how many wait, and sends them as others end.
    """
    # As with sbatch's --export=NONE, but without the 40 s that slurmd may take to ask for the user's own environment.
    study = write_site_study(
        "limited", rounds=2, repeats=1, warmups=0, slurm='setup = ["export SLURM_EXPORT_ENV=NONE"]'
    )
    with strict_site.limits(MaxSubmitJobs=1):
        done = strict_site.jobs("run", study, "--results", home, SBATCH_ACCOUNT="proj", SBATCH_PARTITION="nosuch")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "jobs go to account proj (from SBATCH_ACCOUNT), partition shared\n" in done.stdout
    assert "submitted 1 of 2; Slurm takes no more now: AssocMaxSubmitJobLimit" in done.stdout
    assert "left: 1; they go out as jobs end" in done.stdout
    logs = list((home / "limited" / "logs").iterdir())
    assert [2001] * 2 == [path.stat().st_uid for path in logs]
    assert "unknown" not in timing_log.read(logs[0]).provenance["code_version"]  # though the checkout is root's


@pytest.mark.each_slurm
def test_submit_sends_what_fits_and_goes_on_when_typed_again(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """It says how many are left and what to type, and `check` that not all fit; nothing is sent twice, and nothing
    refused is left behind.
    """
    study = write_site_study("parts", rounds=20, slurm=ACCOUNT)
    with strict_site.limits(MaxSubmitJobs=5):
        checked = strict_site.jobs("check", study, "--results", home)
    assert 0 == checked.returncode, checked.stdout + checked.stderr
    assert "Slurm would take some of the 20 jobs now: AssocMaxSubmitJobLimit" in checked.stdout
    strict_site.wait("the end of its question to a node", lambda: not queued(strict_site))
    for limit in (5, 7):
        with strict_site.limits(MaxSubmitJobs=limit):
            done = strict_site.jobs("submit", study, "--results", home)
        assert 1 == done.returncode, done.stdout + done.stderr
        assert limit == queued(strict_site)
    assert "submitted 2 of 15; Slurm takes no more now: AssocMaxSubmitJobLimit" in done.stdout
    assert "left: 13; when jobs have ended, type the same command again" in done.stdout
    sent = json.loads((home / "parts" / "slurm" / "submissions.json").read_text())
    assert 7 == len({each["job_id"] for each in sent}) == len(sent)
    assert 7 == len(list((home / "parts" / "slurm").glob("*.pkl")))
    strict_site.jobs("cancel", home / "parts")


def test_arrays_are_no_larger_than_the_site_allows(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """With MaxArraySize=51, sixty jobs are an array of fifty and one of ten."""
    study = write_site_study("large", rounds=60, slurm='account = "proj"\npartition = "lax"')
    done = strict_site.jobs("submit", study, "--results", home)
    assert 0 == done.returncode, done.stdout + done.stderr
    sent = json.loads((home / "large" / "slurm" / "submissions.json").read_text())
    arrays = [submission["scheduler_id"].partition("_")[0] for submission in sent]
    assert [50, 10] == [arrays.count(array) for array in dict.fromkeys(arrays)]
    strict_site.jobs("cancel", home / "large")


def test_a_limit_of_the_qos(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """A QOS that takes one job of a user at a time, as debug queues do: `submit` sends one, and says what is left."""
    strict_site.ask("sacctmgr", "-i", "modify", "qos", "debug", "set", "MaxSubmitJobsPerUser=1")
    try:
        study = write_site_study("short", rounds=3, slurm='account = "proj"\npartition = "lax"\nqos = "debug"')
        done = strict_site.jobs("submit", study, "--results", home)
    finally:
        strict_site.ask("sacctmgr", "-i", "modify", "qos", "debug", "set", "MaxSubmitJobsPerUser=-1")
    assert 1 == done.returncode, done.stdout + done.stderr
    assert "submitted 1 of 3; Slurm takes no more now: QOSMaxSubmitJobPerUserLimit" in done.stdout
    assert "left: 2; when jobs have ended, type the same command again" in done.stdout
    strict_site.jobs("cancel", home / "short")


def test_without_an_account_the_message_says_what_to_write(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """The filter's own words, once, and where an account can be given; `check` says the same."""
    study = write_site_study("nobody", rounds=2)
    done = strict_site.jobs("submit", study, "--results", home)
    checked = strict_site.jobs("check", study, "--results", home)

    assert 2 == done.returncode
    assert 1 == checked.returncode
    for output in (done.stderr, checked.stdout):
        assert 1 == output.count("You are associated with multiple allocations")
        assert "write `account = ...` below [slurm], or export SBATCH_ACCOUNT" in output


def test_jobs_go_one_by_one_where_there_are_no_arrays(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """At a site without arrays each job is submitted by itself, one running after the other, as in an array; `check`
    knows it before.
    """
    study = write_site_study("single", targets=in_partition("plain"), rounds=3, slurm=ACCOUNT)
    checked = strict_site.jobs("check", study, "--results", home)
    done = strict_site.jobs("submit", study, "--results", home)

    assert 0 == checked.returncode, checked.stdout + checked.stderr
    assert "Slurm would take the 3 jobs one by one, and not as an array: FAILED: job arrays are not" in checked.stdout
    assert 0 == done.returncode, done.stdout + done.stderr
    sent = json.loads((home / "single" / "slurm" / "submissions.json").read_text())
    assert 3 == len({each["scheduler_id"] for each in sent})
    reasons = strict_site.run_as("alice", "squeue", "--noheader", "--me", "--format=%r").stdout.split()
    assert 2 <= reasons.count("Dependency")
    strict_site.jobs("cancel", home / "single")


def test_a_study_leaves_out_what_its_profile_asks_for(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """A profile that gives `mem` or `gres` doesn't shut out sites that refuse them: `without` takes them away."""
    study = write_site_study("keys", targets=in_partition("plain"), slurm=f'{ACCOUNT}\nmem_gb = 1\ngres = "gpu:1"')
    text = study.read_text()

    def submitted(number: int, without: str) -> Any:
        study.write_text(text.replace('"keys"', f'"keys{number}"').replace('"plain"', f'"plain", without = {without}'))
        return strict_site.jobs("submit", study, "--results", home)

    for number, (without, refused) in enumerate([("[]", "--mem"), ('["mem_gb"]', "--gres")]):
        done = submitted(number, without)
        assert 2 == done.returncode
        assert f"error: Slurm did not take the job: FAILED: {refused} is not available on this system\n" in done.stderr
    taken = submitted(2, '["mem_gb", "gres"]')
    assert 0 == taken.returncode, taken.stdout + taken.stderr
    strict_site.jobs("cancel", home / "keys2")


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (0, "error: Slurm did not take 2 jobs: "),
        (1, "error: 1 of 2 jobs are submitted and stay in the queue; Slurm did not take the job: "),
    ],
    ids=["the first", "the second"],
)
def test_after_a_refusal_the_message_says_what_runs(
    refused: int, words: str, strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """Of two arrays one asks for what no node has: what went out before it stays, and the message says so."""
    small = {name: f'{name} = {{ path = "$DEVCLUSTER_SHARED" }}' for name in ("one", "two")}
    study = write_site_study(
        "half", targets="\n".join(small.values()), slurm=f'{ACCOUNT}\npartition = "shared"', repeats=100_000
    )
    planned = strict_site.jobs("plan", study, "--ids").stdout.splitlines()
    (large,) = (line for name, line in small.items() if f"-{name}-" in planned[refused])
    study.write_text(study.read_text().replace(large, large.replace(" }", ", slurm = { mem_gb = 9999 } }")))
    done = strict_site.jobs("submit", study, "--results", home)

    assert 2 == done.returncode
    assert words in done.stderr
    assert refused == queued(strict_site)
    strict_site.jobs("cancel", home / "half")


@pytest.mark.parametrize(("partition", "slurm"), [("gpu", "gpus_per_node = 1"), ("batch", "")])
def test_check_asks_a_node_as_the_jobs_will(
    partition: str, slurm: str, strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """Where jobs have to ask for GPUs, its question does; where no interactive jobs are allowed, it is a batch job."""
    study = write_site_study("node", targets=in_partition(partition), slurm=f"{ACCOUNT}\n{slurm}")
    done = strict_site.jobs("check", study, "--results", home)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "and the package start" in done.stdout
    assert [] == list(home.glob(".ckpt-check*"))


def test_jobs_run_where_they_have_to_ask_for_gpus(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """With `gpus_per_node` a job gets them and runs; without, `run` and `check` end with the filter's words."""
    study = write_site_study("gpus", targets=in_partition("gpu"), repeats=1, warmups=0, slurm=ACCOUNT)
    refused, checked = (strict_site.jobs(command, study, "--results", home) for command in ("run", "check"))
    study.write_text(study.read_text().replace(ACCOUNT, f"{ACCOUNT}\ngpus_per_node = 1"))
    done = strict_site.jobs("run", study, "--results", home)

    assert (2, 1) == (refused.returncode, checked.returncode)
    words = "Jobs in partition gpu have to ask for GPUs: --gpus, --gpus-per-node or --gres=gpu:N\n"
    assert f"Slurm did not take the job: {words}" in refused.stderr
    assert f"Slurm would not take the jobs: {words}" in checked.stdout
    assert 0 == done.returncode, done.stdout + done.stderr
    (path,) = (home / "gpus" / "logs").iterdir()
    assert '"SLURM_GPUS_ON_NODE": "1"' in timing_log.read(path).provenance["slurm"]


def test_check_computes_the_memory_that_jobs_need(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """A partition that gives 256 MB per CPU kills the jobs: `check` names that default and what to write instead."""
    study = write_site_study("small", targets=in_partition("small"), slurm=ACCOUNT)
    done = strict_site.jobs("check", study, "--results", home)

    assert 1 == done.returncode
    assert "jobs get 256 MB of memory on each node (DefMemPerCPU = 256 MB), and need at least 2" in done.stdout
    assert "write `mem_gb = 1` below [slurm]" in done.stdout


@pytest.mark.parametrize(("partition", "slurm"), [("small", "exclusive = true"), ("whole", "")])
def test_check_knows_the_memory_of_exclusive_jobs(
    partition: str, slurm: str, strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """By their own wish or by the partition's rule they have all CPUs of a node, with the memory of all of them."""
    study = write_site_study("exclusive", targets=in_partition(partition), slurm=f"{ACCOUNT}\n{slurm}")
    done = strict_site.jobs("check", study, "--results", home)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "jobs get 1,024 MB of memory on each node (DefMemPerCPU = 256 MB for each of 4 CPUs)" in done.stdout


def test_check_says_why_python_does_not_start_on_a_node(
    strict_site: Any, home: Path, write_site_study: WriteStudy
) -> None:
    """An interpreter that nodes don't have: the reason itself, and not only srun's exit code."""
    study = write_site_study("missing", slurm=ACCOUNT)
    done = strict_site.jobs("check", study, "--results", home, CKPT_STUDY_PYTHON="/no/such/python")

    assert 1 == done.returncode
    assert "the package does not start on a compute node by /no/such/python: " in done.stdout
    assert "No such file or directory" in done.stdout


def test_a_study_runs_in_one_job(strict_site: Any, home: Path, write_site_study: WriteStudy) -> None:
    """Where one job is allowed at a time, and no arrays, `--in-one-job` needs one; `status` knows whose turn it is, and
    the same command sends nothing that is complete.
    """
    study = write_site_study("one", targets=in_partition("plain"), rounds=2, repeats=1, warmups=0, slurm=ACCOUNT)
    details: set[str] = set()

    def all_complete() -> bool:
        jobs = json.loads(strict_site.jobs("status", home / "one", "--json").stdout)
        details.update(f"{job['job_id'][:3]} {job['state']}: {job['detail']}" for job in jobs)
        return {"complete"} == {job["state"] for job in jobs}

    with strict_site.limits(MaxSubmitJobs=1):
        sent = strict_site.jobs("submit", study, "--results", home, "--in-one-job")
    assert 0 == sent.returncode, sent.stdout + sent.stderr
    strict_site.wait("both jobs", all_complete)
    again = strict_site.jobs("submit", study, "--results", home, "--in-one-job")

    assert any(detail.startswith("r02 waiting: its turn comes in job ") for detail in details), details
    assert "0 of 2 jobs to run" in again.stdout
    numbers = json.loads((home / "one" / "slurm" / "submissions.json").read_text())
    assert 1 == len({each["scheduler_id"] for each in numbers})
