"""Studies on a real Slurm: arrays, order, node-local and shared targets, plain sbatch, many jobs."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.logs.load import load_results
from analysis.selftest import verdicts
from jobs.plan import study_file
from jobs.selftest import study_text

pytestmark = pytest.mark.slurm

WriteStudy = Callable[..., Path]

BOTH = "shared = {}\nnvme = {}"


def test_the_quick_study_runs_on_two_targets_and_through_plain_sbatch(cluster: Any, tmp_path: Path) -> None:
    """The shipped study, on a node-local and a shared target: submitit sends most jobs, plain `sbatch` one.

    With a smaller model: `make demo` saves the whole one, and Slurm's part is the same.
    """
    text = study_file.SHIPPED["quick"].read_text()
    path = tmp_path / "quick.toml"
    for shipped, small in [
        ('name = "quick"', 'name = "quick"\nsite = "devcluster"'),
        ('model = "openllama-3b"', 'model = "llama-15m"'),
        ("repeats = 2", "repeats = 1"),
        ('[targets.here]\npath = "."', "[targets.nvme]\n[targets.shared]"),
    ]:
        assert shipped in text
        text = text.replace(shipped, small)
    path.write_text(text)
    assert study_file.read(path).targets.keys() == {"nvme", "shared"}

    # One by hand, without submitit …
    output = tmp_path / "job.out"
    cluster.ask(
        "sbatch", "--wait", "--partition=shared", f"--output={output}", "slurm/job.sbatch", str(path),
        "--strategy", "torch_save", "--target", "shared", "--results", str(tmp_path / "results"),
    )  # fmt: skip
    assert "complete" in output.read_text()
    # … and the missing five through submitit.
    done = cluster.jobs("run", path, "--cluster", "slurm", "--results", tmp_path / "results")
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "5 of 6 jobs to run" in done.stdout

    results = load_results(tmp_path / "results" / "quick")
    assert {"complete"} == set(results.jobs["status"])
    assert 6 == len(results.jobs)
    assert 1 == results.jobs["state_digest"].nunique()
    assert results.samples["valid"].all()
    assert {"target nvme", "target shared"} <= {
        part.strip() for line in done.stdout.splitlines() for part in line.split(",")
    }


def test_node_local_jobs_run_side_by_side_and_shared_ones_one_after_the_other(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """Two arrays, each one sbatch, in the plan's order; jobs on the shared target never overlap."""
    study = write_study("arrays", targets=BOTH, rounds=3, repeats=3)
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr

    sent = json.loads((tmp_path / "arrays" / "slurm" / "submissions.json").read_text())
    assert 2 == len({each["scheduler_id"].partition("_")[0] for each in sent})
    results = load_results(tmp_path / "arrays")
    starts = results.jobs.set_index("job_id")["clock_zero_unix_s"]
    samples = results.samples
    samples["end"] = samples["start_s"] + samples["duration_s"] + samples["job_id"].map(starts)
    ends = samples.groupby("job_id")["end"].max()
    shared = [each["job_id"] for each in sent if "-shared-" in each["job_id"]]
    planned = [job["id"] for job in json.loads((tmp_path / "arrays" / "plan.json").read_text())["jobs"]]
    assert [job for job in planned if "-shared-" in job] == shared
    for before, after in itertools.pairwise(shared):
        assert ends[before] < starts[after]


def test_each_node_has_its_own_local_directory(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """$DEVCLUSTER_NVME is resolved in the job, on its node; the log names the node and the path."""
    study = write_study("local", targets="nvme = {}", rounds=4)
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr

    from jobs import timing_log

    logs = [timing_log.read(path) for path in sorted((tmp_path / "local" / "logs").glob("*.h5"))]
    assert {cluster.environment["DEVCLUSTER_NVME"]} == {log.storage["path"] for log in logs}
    assert len({log.provenance["host"] for log in logs}) > 1
    assert all(log.provenance["host"].startswith("node") for log in logs)


def test_a_target_that_a_node_refuses_is_told_in_the_log(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """Memory, a variable that isn't set, and the wrong filesystem: failed, with what was tried."""
    targets = (
        'memory = { path = "/dev/shm" }\nunset = { path = "$NO_SUCH_VARIABLE/x" }\n'
        'mount = { path = "$DEVCLUSTER_SHARED", filesystem = "lustre" }\nnowhere = { path = "/no/such/mount" }'
    )
    done = cluster.jobs("run", write_study("refused", targets=targets), "--cluster", "slurm", "--results", tmp_path)
    assert 1 == done.returncode

    details = {status["job_id"].split("-")[2]: status["detail"] for status in cluster.status(tmp_path / "refused")}
    assert "is memory and no disk" in details["memory"]
    assert "$NO_SUCH_VARIABLE is not set here" in details["unset"]
    assert "is it mounted on this node?" in details["mount"]
    assert "is no directory here" in details["nowhere"]


@pytest.mark.each_slurm
def test_a_failed_allocation_is_told(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A real limit on memory, set by the study's own `setup`: the job fails or is lost, with the allocator's words."""
    study = write_study(
        "tight", vocabulary=2_000_000, slurm='setup = ["ulimit -v 1000000"]\nsrun_args = ["--propagate=AS"]'
    )
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 1 == done.returncode, done.stdout + done.stderr
    status = cluster.status(tmp_path / "tight")[0]
    assert status["state"] in {"failed", "lost"}
    assert re.search(r"MemoryError|allocate memory|DefaultCPUAllocator|bad_alloc", status["detail"]), status


def test_a_whole_study_runs_inside_one_allocation(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """slurm/study.sbatch: one srun after the other, the same logs, and the tables at the end of the output."""
    study = write_study("whole", strategies='["torch_save", "tensorstore_t5x"]')
    output = tmp_path / "study.out"
    cluster.ask(
        "sbatch", "--wait", "--partition=shared", f"--output={output}", "slurm/study.sbatch", str(study),
        "--results", str(tmp_path),
    )  # fmt: skip
    assert "Relative to torch_save" in output.read_text()
    assert {"complete"} == {status["state"] for status in cluster.status(tmp_path / "whole")}


@pytest.mark.each_slurm
def test_variables_of_a_surrounding_allocation_do_not_leak(
    cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """SBATCH_PARTITION and SLURM_* of an interactive session change nothing about the submitted jobs."""
    leaking = {"SBATCH_PARTITION": "nosuch", "SBATCH_TIMELIMIT": "nonsense", "SLURM_MEM_PER_NODE": "1"}
    cluster.environment.update(leaking)
    try:
        done = cluster.jobs("run", write_study("leak"), "--cluster", "slurm", "--results", tmp_path)
    finally:
        for key in leaking:
            del cluster.environment[key]
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.each_slurm
def test_a_thousand_jobs_are_one_submission(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """One sbatch, one array; `status` asks once; `cancel` ends this study's jobs and no others."""
    other = cluster.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    study = write_study("thousand", rounds=999)
    started = time.monotonic()
    done = cluster.jobs("submit", study, "--cluster", "slurm", "--results", tmp_path)
    submitted_s = time.monotonic() - started
    assert 0 == done.returncode, done.stdout + done.stderr
    started = time.monotonic()
    found = cluster.status(tmp_path / "thousand")
    status_s = time.monotonic() - started
    print(f"submit of 999 jobs: {submitted_s:.1f} s; status: {status_s:.2f} s")  # reported, not asserted

    assert 999 == len(found)
    assert {"waiting", "running"} >= {each["state"] for each in found}
    sent = json.loads((tmp_path / "thousand" / "slurm" / "submissions.json").read_text())
    assert 1 == len({each["scheduler_id"].partition("_")[0] for each in sent})
    cluster.jobs("cancel", tmp_path / "thousand")
    cluster.wait("the queue without them", lambda: len(cluster.ask("squeue", "-h", "-r").splitlines()) == 1)
    assert other in cluster.ask("squeue", "-h")
    cluster.ask("scancel", other)


@pytest.mark.each_slurm
def test_a_job_that_can_never_start_does_not_hold_run(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A dependency that can't come true: `run` says stuck, with Slurm's reason, and ends with 1."""
    study = write_study("never", slurm='dependency = "afternotok:1"')
    failed = cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=true").strip()
    study.write_text(study.read_text().replace("afternotok:1", f"afternotok:{failed}"))
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 1 == done.returncode
    assert "DependencyNeverSatisfied" in done.stdout
    cluster.jobs("cancel", tmp_path / "never")


@pytest.mark.each_slurm
def test_what_slurm_refuses_is_one_message(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A partition that doesn't exist: exit code 2, sbatch's own words, no traceback."""
    study = write_study("refusal", targets='x = { path = "/tmp", slurm = { partition = "nosuch" } }')
    done = cluster.jobs("run", study, "--cluster", "slurm", "--results", tmp_path)

    assert 2 == done.returncode
    assert "invalid partition" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_slurm_is_the_default_where_it_is_installed(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """With a controller `slurm`; without one nothing, since this may be a login node: by `--cluster local` only."""
    study = write_study("default", targets=f'x = {{ path = "{tmp_path}" }}')
    assert "would go to slurm" in cluster.jobs("run", study, "--results", tmp_path, "--dry-run").stdout
    before = cluster.environment["SLURM_CONF"]
    cluster.environment["SLURM_CONF"] = os.devnull
    try:
        for command in ("run", "check"):
            refused = cluster.jobs(command, study, "--results", tmp_path)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert "Slurm is installed here and does not answer" in refused.stderr
            assert "--cluster local" in refused.stderr
        local = cluster.jobs("run", study, "--results", tmp_path, "--dry-run", "--cluster", "local")
        assert "would go to local" in local.stdout
    finally:
        cluster.environment["SLURM_CONF"] = before
    assert not (tmp_path / "default").exists()


def test_results_that_nodes_do_not_see(cluster: Any, write_study: WriteStudy) -> None:
    """The login node has a directory of that path, too: `check` finds that a node's is another one."""
    results = Path(cluster.environment["DEVCLUSTER_NVME"]) / "results"
    done = cluster.jobs("check", write_study("elsewhere"), "--results", results)

    assert 1 == done.returncode, done.stdout + done.stderr
    assert f"problem  {results.parent}, where the results go, is not seen" in done.stdout
    assert "choose --results DIR on a filesystem that the nodes share" in done.stdout
    assert [] == list(results.parent.iterdir())


def test_the_selftest_passes(cluster: Any, tmp_path: Path) -> None:
    """Known faults through sbatch, nodes, logs and tables: every truth that no busy node changes. Without the loops."""
    study = tmp_path / "selftest.toml"
    study.write_text(study_text("selftest", Path(cluster.environment["DEVCLUSTER_SHARED"])))
    done = cluster.jobs("run", study, "--results", tmp_path / "results")
    [results] = (tmp_path / "results").iterdir()

    assert 0 == done.returncode, done.stdout + done.stderr
    wrong = [verdict.what for verdict in verdicts(load_results(results)) if not verdict.passed]
    assert [what for what in wrong if "sleep" not in what and "MB/s" not in what] == []
