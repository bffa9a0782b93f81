"""Many ranks on many nodes, on a real Slurm: one checkpoint, one log, and nobody who hangs for a lost one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt import registry
from ckpt.errors import MissingLibraryError
from jobs import timing_log
from jobs.timing_log import TimingLog

pytestmark = pytest.mark.slurm

WriteStudy = Callable[..., Path]


def run(cluster: Any, study: Path, results: Path) -> subprocess.CompletedProcess[str]:
    """`python -m jobs run` on the cluster."""
    done: subprocess.CompletedProcess[str] = cluster.jobs("run", study, "--cluster", "slurm", "--results", results)
    return done


def logs(results: Path, study: Path) -> dict[str, TimingLog]:
    """Every log of a study, by job."""
    return {path.stem: timing_log.read(path) for path in sorted((results / study.stem / "logs").glob("*.h5"))}


def assert_every_rank_measured(log: TimingLog, ranks: int, trials: int) -> None:
    """The log has each rank's samples of each trial, all valid, and their shares make the state."""
    assert ("complete", "") == (log.header.status, log.header.error)
    assert {(True, "")} == {(sample.valid, sample.reason) for sample in log.samples}
    assert {trials} == set(Counter(s.rank for s in log.samples if (s.operation, s.phase) == ("save", "total")).values())
    for operation in ("save", "load"):
        first = [
            s for s in log.samples
            if (s.operation, s.phase, s.trial) == (operation, "total", 0) and s.cache != "warm"
        ]  # fmt: skip
        assert list(range(ranks)) == sorted(s.rank for s in first)
        assert log.state["state_bytes"] == sum(s.state_bytes for s in first)
    assert ranks == len(log.ranks)


def test_every_strategy_on_two_nodes_with_two_ranks_each(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """Four ranks save one checkpoint together on a shared target, and each loads its part, bit for bit."""
    names = []
    for name in registry.names():
        try:
            registry.create(name).prepare()
        except MissingLibraryError:
            continue
        names.append(name)
    assert not os.environ.get("CKPT_REQUIRE_ALL") or names == registry.names()
    study = write_study(
        "together", strategies=str(names).replace("'", '"'), repeats=1, warmups=0,
        slurm="nodes = 2\ntasks_per_node = 2",
    )  # fmt: skip
    done = run(cluster, study, tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    found = logs(tmp_path, study)
    assert {f"r01-{name}-shared-2x2" for name in names} == set(found)
    for log in found.values():
        assert_every_rank_measured(log, ranks=4, trials=1)
    assert 1 == len({log.state["digest"] for log in found.values()})
    assert [(0, 0), (1, 0), (2, 1), (3, 1)] == [(each.rank, each.node) for each in log.ranks]
    assert 2 == len({each.host for each in log.ranks})


def test_scales_are_an_axis(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """A list of node counts is a study of scales; node-local targets hold each node's part, and each node's first rank
    runs the study's commands there; tables show the growth.
    """
    study = write_study(
        "scales", strategies='["torch_save", "safetensors_tuned"]', repeats=1, warmups=0,
        targets='nvme = { prepare = "hostname", between = "hostname" }', slurm="nodes = [1, 4]\ntasks_per_node = 2",
    )  # fmt: skip
    done = run(cluster, study, tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    found = logs(tmp_path, study)
    assert 4 == len(found)
    for job_id, log in found.items():
        nodes, tasks = (int(number) for number in job_id.rpartition("-")[2].split("x"))
        assert_every_rank_measured(log, ranks=nodes * tasks, trials=1)
        assert nodes == len({each.host for each in log.ranks})
        first = [("prepare", each.rank, each.host) for each in log.ranks if each.rank % tasks == 0]
        first += [("between", rank, host) for _, rank, host in first]
        assert sorted(first) == sorted((hook.when, hook.rank, hook.output) for hook in log.hooks)
    assert 1 == len({log.state["digest"] for log in found.values()})
    assert "Scaling" in done.stdout


def test_ranks_load_what_another_node_wrote(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """With `read_shift` each rank loads, and verifies, the share of the rank one node further on."""
    study = write_study(
        "shifted", strategies='["torch_save", "tensorstore_tuned"]', repeats=1, warmups=0, trials="read_shift = 1",
        slurm="nodes = 2\ntasks_per_node = 2",
    )  # fmt: skip
    done = run(cluster, study, tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    for log in logs(tmp_path, study).values():
        assert_every_rank_measured(log, ranks=4, trials=1)
        assert 1 == log.header.read_shift
        saved, loaded = (
            {s.rank: s.state_bytes for s in log.samples if (s.operation, s.phase) == (operation, "total")}
            for operation in ("save", "load")
        )
        assert [saved[rank] for rank in (2, 3, 0, 1)] == [loaded[rank] for rank in range(4)]


@pytest.mark.parametrize("load_ranks", [2, 8])
def test_resharding(load_ranks: int, cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """What four ranks saved is loaded by two, and by eight, bit for bit; who can't is left out, and that is told."""
    study = write_study(
        f"reshard{load_ranks}", strategies='["torch_save", "tensorstore_tuned", "torch_dcp"]',
        repeats=1, warmups=0, trials=f"load_ranks = {load_ranks}", slurm="nodes = 2\ntasks_per_node = 2",
    )  # fmt: skip
    done = run(cluster, study, tmp_path)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert f"torch_save at 2x2: it can't load on {load_ranks} ranks what 4 saved" in " ".join(done.stdout.split())
    found = logs(tmp_path, study)
    assert 2 == len(found)
    for log in found.values():
        assert ("complete", load_ranks) == (log.header.status, log.header.load_ranks)
        assert {(True, "")} == {(sample.valid, sample.reason) for sample in log.samples}
        cold = [s for s in log.samples if s.operation == "load" and s.cache != "warm"]
        assert load_ranks == len(cold)
        assert log.state["state_bytes"] == sum(s.state_bytes for s in cold)
        assert 4 == len({s.rank for s in log.samples if s.operation == "save"})


SLOW = '[{ name = "_selftest", sleep_s = 0.3 }]'
"""Long enough to be hit in the middle of a save or a load."""


def processes(study: Path, rank: int) -> Iterator[int]:
    """The processes of a rank of this study, as the machine that plays all nodes sees them."""
    found = subprocess.run(["pgrep", "-f", f"submitit.core._submit {study}/slurm"], capture_output=True, text=True)  # noqa: PLW1510  # none found is no error
    for process in map(int, found.stdout.split()):
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        is_srun = Path(f"/proc/{process}/comm").read_text() == "srun\n"  # its command line names what it starts
        if f"SLURM_PROCID={rank}".encode() in environment and not is_srun:
            yield process


@pytest.mark.parametrize(
    ("rank", "number", "told"),
    [
        pytest.param(
            3, signal.SIGKILL, "rank 3 ({host}) is gone: its connection to rank 0 broke", marks=pytest.mark.each_slurm
        ),
        (1, signal.SIGSTOP, "rank 1 ({host}) did not answer within 30 s"),
        (0, signal.SIGKILL, "rank 0 ({host}) is gone or hangs"),
    ],
    ids=["a rank is killed", "a rank hangs", "the first rank is killed"],
)
def test_a_lost_rank(
    rank: int, number: signal.Signals, told: str, cluster: Any, write_study: WriteStudy, tmp_path: Path
) -> None:
    """The others hear of a killed one at once, and wait for one that hangs for a bounded time.

    The log ends with the rank's name, and keeps what was finished before.
    """
    name = f"lost{rank}"
    study = write_study(
        name, strategies=SLOW, repeats=1000, warmups=0, trials="rank_timeout_s = 30\nceiling = false",
        slurm="nodes = 2\ntasks_per_node = 2",
    )  # fmt: skip
    assert 0 == cluster.jobs("submit", study, "--cluster", "slurm", "--results", tmp_path).returncode
    path = tmp_path / name / "logs" / "r01-_selftest+sleep_s=0.3-shared-2x2.h5"

    def log() -> TimingLog:
        return timing_log.read(path)

    def is_measuring() -> bool:
        if not path.exists():
            return False
        started = log()
        assert "running" == started.header.status, started.header.error
        return len({sample.trial for sample in started.samples}) > 2

    cluster.wait("some trials in the log", is_measuring)
    host = log().ranks[rank].host
    victims = list(processes(tmp_path / name, rank))
    assert victims
    for process in victims:
        os.kill(process, number)

    cluster.wait("the end in the log", lambda: log().header.status != "running")
    found = log()
    assert "failed" == found.header.status
    assert told.format(host=host) in found.header.error
    last = max(sample.trial for sample in found.samples)
    if rank:  # who loses the first one has no samples of the last trial but its own
        assert {(False, True)} == {
            (s.valid, told.format(host=host) in s.reason) for s in found.samples if s.trial == last
        }
        assert {True} == {s.valid for s in found.samples if s.trial < last}
    # The nodes come free, though one of the processes may never end by itself.
    cluster.wait("an empty queue", lambda: not cluster.ask("squeue", "-h", "-n", f"ckpt-{name}").strip())
    (status,) = cluster.status(tmp_path / name)
    assert "failed" == status["state"]
    assert told.format(host=host) in status["detail"]


def test_plain_sbatch_takes_a_scale(cluster: Any, write_study: WriteStudy, tmp_path: Path) -> None:
    """`slurm/job.sbatch` with several tasks runs a job of several ranks; `slurm/study.sbatch` runs all scales."""
    root = Path(__file__).parent.parent.parent
    study = write_study("plain", repeats=1, warmups=0, slurm="nodes = [1, 2]\ntasks_per_node = 2")

    def sbatch(script: str, *arguments: str) -> str:
        options = ["--nodes=2", "--ntasks-per-node=2", "--partition=shared", "--time=10", "--wait"]
        command = ["sbatch", *options, f"--output={tmp_path}/out", root / "slurm" / script, study, *arguments]
        subprocess.run(
            [*map(str, command), "--results", str(tmp_path)], env=cluster.environment, cwd=root, check=True, timeout=300
        )
        return (tmp_path / "out").read_text()

    sbatch("job.sbatch", "--strategy", "torch_save", "--target", "shared", "--scale", "2x2")
    found = logs(tmp_path, study)
    assert ["r01-torch_save-shared-2x2"] == list(found)
    assert_every_rank_measured(found["r01-torch_save-shared-2x2"], ranks=4, trials=1)
    written_s = time.time()
    output = sbatch("study.sbatch")
    found = logs(tmp_path, study)
    assert ["r01-torch_save-shared-1x2", "r01-torch_save-shared-2x2"] == sorted(found)
    assert_every_rank_measured(found["r01-torch_save-shared-1x2"], ranks=2, trials=1)
    assert (tmp_path / "plain" / "logs" / "r01-torch_save-shared-2x2.h5").stat().st_mtime < written_s
    assert "Scaling" in output
