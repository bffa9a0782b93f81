"""One job, start to end: the log that it leaves, whatever happens to it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt.disk import mounts
from ckpt.disk.mounts import Mount
from ckpt.strategies.torch_save import TorchSave
from ckpt.workload import building
from ckpt.workload.spec import StateSpec
from jobs import timing_log
from jobs.node.run import Clock, run_job
from jobs.plan import plan
from jobs.timing_log import Metadata
from support.faults import LACKS, in_a_traced_child, require_strace
from support.one_job import Planned, only_job, run_only


@pytest.mark.parametrize(("extra", "status"), [("peers", "skipped"), ("run", "failed")])
def test_a_missing_library(
    extra: str, status: str, tiny: dict[str, Any], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an optional library the job is skipped, and says which; without one that everybody needs it fails. When
    the library is there, the job runs.
    """
    tiny["strategies"] = ["torch_save"]
    paths = planned(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(TorchSave, "requires", ("no_such_library",))
        patch.setattr(TorchSave, "extra", extra)
        log = run_only(paths)
    assert log.header.status == status
    assert "needs no_such_library" in log.header.error
    assert f"pip install '.[{extra}]'" in log.header.error
    assert run_only(paths).header.status == "complete"


def test_complete_logs(tiny: dict[str, Any], target: Path, planned: Planned) -> None:
    """Each strategy leaves a complete log: all samples, the disk use, and what was saved where by what."""
    (target / "precious").write_text("mine")
    tiny["strategies"] = ["torch_save", "tensorstore_basic", {"name": "tensorstore_t5x"}]
    paths = planned(tiny)
    spec = StateSpec(**tiny["state"])
    digest = building.digest(building.build(spec))

    for job in plan.from_json(paths.plan_json.read_text(), "plan.json").jobs:
        assert run_job(str(paths.root), job.id) == "complete"

        log = timing_log.read(paths.log(job.id))
        header = log.header
        assert (header.status, header.error, header.job_id, header.study) == ("complete", "", job.id, "tiny")
        assert (job.strategy, job.options) == (header.strategy, json.loads(header.strategy_options))
        phases = ["call", "sync", "commit", "total", "total", "total"]
        assert [s.phase for s in log.samples] == 3 * phases
        assert [s.trial for s in log.samples] == sorted([0, 1, 2] * 6)
        assert [s.warmup for s in log.samples] == [True] * 6 + [False] * 12
        assert all(s.valid and s.duration_s > 0 for s in log.samples)
        assert [s.start_s for s in log.samples if s.phase == "total"] == sorted(
            s.start_s for s in log.samples if s.phase == "total"
        )
        assert [use.trial for use in log.disk] == [0, 1, 2]
        assert all(0 < use.file_count <= job.checkpoint_files for use in log.disk)
        assert all(0 < use.apparent_bytes <= job.checkpoint_bytes for use in log.disk)
        assert {job.state_bytes} == {s.state_bytes for s in log.samples} == {log.state["state_bytes"]}
        assert (digest, "float32", 21) == (log.state["digest"], log.state["dtypes"], log.state["tensors"])
        assert (str(target), mounts.mount_of(target).filesystem) == (log.storage["path"], log.storage["filesystem"])
        assert log.storage["free_bytes"] > 0
        assert os.getpid() == log.provenance["process_id"]
        assert set(json.loads(log.provenance["packages"])) >= {"torch", "tensorstore", "numpy"}
        assert 0 < log.provenance["clock_resolution_s"] < 1e-3
        assert [target / "precious"] == list(target.iterdir())


def test_loads_behind_a_hidden_cache_are_unproven(
    tiny: dict[str, Any], planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a filesystem of which nothing is known the log says so, and calls no load cold and no save durable."""
    monkeypatch.setattr(mounts, "mount_of", lambda _: Mount("newfs", "source", "rw", "/"))
    log = run_only(planned(tiny))

    assert log.storage["cold_proof"] == log.storage["durability_proof"]
    assert log.storage["cold_proof"] == "nothing is known of filesystems of the type newfs"
    assert log.storage["fsync_guarantee"] == "unknown"
    assert {s.cache for s in log.samples if s.operation == "load"} == {"cold-unproven", "warm"}
    assert {s.durability for s in log.samples if s.phase == "total"} == {"committed-unproven", "n/a"}


def test_the_journal_has_a_line_for_each_trial(
    tiny: dict[str, Any], planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job's stdout tells its trials as they end, warm-ups marked, and how it ended."""
    run_only(planned(tiny))

    told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(":")[0] for line in told[-4:]] == ["trial 0 (warm-up)", "trial 1", "trial 2", "complete"]


def test_a_complete_job_is_left_alone(tiny: dict[str, Any], planned: Planned) -> None:
    """Running a complete job again changes nothing in its log."""
    paths = planned(tiny)
    run_only(paths)
    before = paths.log(only_job(paths).id).read_bytes()

    assert run_only(paths).header.status == "complete"
    assert before == paths.log(only_job(paths).id).read_bytes()


def test_an_unreadable_log_is_kept(tiny: dict[str, Any], planned: Planned) -> None:
    """A log that can't be read, of a later release for one, is moved aside and not overwritten."""
    paths = planned(tiny)
    path = paths.log(only_job(paths).id)
    path.write_text("precious")

    assert run_only(paths).header.status == "complete"
    (aside,) = set(paths.logs.iterdir()) - {path}
    assert aside.read_text() == "precious"
    assert aside.suffix != ".h5"


def test_another_state_does_not_continue_a_log(
    tiny: dict[str, Any], model: Path, changed_model: Callable[..., Path], planned: Planned
) -> None:
    """Trials of two states never stand in one log: the job fails, again and again, and the log stays as it was."""
    paths = planned(tiny)
    before = run_only(paths)
    before.header.status = "running"
    before.samples = before.samples[:6]
    before.write(paths.log(only_job(paths).id))
    shutil.copy(changed_model(dtype="float16"), model)

    for _ in range(2):
        log = run_only(paths)
        assert log.header.status == "failed"
        assert before.state["digest"] in log.header.error
        assert before.state == log.state
        assert len(log.samples) == 6


def test_clock_of_a_continued_log() -> None:
    """The clock of a log that is continued goes on from the log's own zero."""
    before = Clock()
    assert 0 <= before() < 100

    after = Clock(before.zero_unix_s - 1000)
    assert before.zero_unix_s - 1000 == after.zero_unix_s
    assert 990 < after() - before() < 1010


def write_study(tmp_path: Path, tiny: dict[str, Any], strategies: str, slurm: str) -> Path:
    """A study of several ranks of the tiny model."""
    path = tmp_path / "ranks.toml"
    path.write_text(
        f'name = "ranks"\nstrategies = {strategies}\n[state]\nmodel = "{tiny["state"]["model"]}"\n'
        f'[targets.here]\npath = "{tiny["targets"]["here"]["path"]}"\nallow_tmpfs = true\n'
        f"[trials]\nrepeats = 1\nwarmups = 0\n[slurm]\n{slurm}\n"
    )
    return path


def test_several_ranks_on_this_machine(tiny: dict[str, Any], python: Any, target: Path, tmp_path: Path) -> None:
    """The local executor starts a job's ranks; all of them are in the one log, and leave nothing behind."""
    study_toml = write_study(tmp_path, tiny, '["torch_save", "tensorstore_tuned"]', "tasks_per_node = [1, 3]")
    done = python("-m", "jobs", "run", str(study_toml), "--cluster", "local", "--results", str(tmp_path))

    assert 0 == done.returncode, done.stdout + done.stderr
    logs = {path.stem: timing_log.read(path) for path in (tmp_path / "ranks" / "logs").glob("*.h5")}
    assert 4 == len(logs)
    assert 1 == len({log.state["digest"] for log in logs.values()})
    for job_id, log in logs.items():
        ranks = 3 if job_id.endswith("1x3") else 1
        assert (log.header.status, log.header.error) == ("complete", "")
        assert set(range(ranks)) == {sample.rank for sample in log.samples} == {each.rank for each in log.ranks}
        assert {True} == {sample.valid for sample in log.samples}
        for operation in ("save", "load"):
            first = [s for s in log.samples if (s.operation, s.phase, s.trial) == (operation, "total", 0)]
            assert log.state["state_bytes"] == sum(s.state_bytes for s in first if s.cache != "warm")
        _check_small_files(log.metadata, ranks)
    assert [] == list(target.glob("ckpt-*"))


def _check_small_files(rows: list[Metadata], ranks: int) -> None:
    """One rank by itself, then all at once; each then looks at the files of the next one."""
    operations = ["mkdir", "create", "stat", "read", "unlink", "rmdir"]
    assert [(row.operation, row.rank, row.made_by) for row in rows if row.ranks == 1] == [
        (name, 0, 0) for name in operations
    ]
    together = [row for row in rows if row.ranks == ranks]
    assert sorted((row.operation, row.rank, row.made_by) for row in together) == sorted(
        (name, rank, (rank + 1) % ranks if name in {"stat", "read"} else rank)
        for name in operations
        for rank in range(ranks)
    )
    for before, after in itertools.pairwise(operations):
        ended = max(row.start_s + row.duration_s for row in together if row.operation == before)
        begun = min(row.start_s for row in together if row.operation == after)
        assert ended < begun + 0.1, f"{after} waits until all ranks have ended {before}; their clocks agree to less"


def test_more_nodes_than_this_machine_is(tiny: dict[str, Any], python: Any, tmp_path: Path) -> None:
    """Before anything runs, a job of several nodes is refused, with what to type instead."""
    study_toml = write_study(tmp_path, tiny, '["torch_save"]', "nodes = 2")
    done = python("-m", "jobs", "run", str(study_toml), "--cluster", "local", "--results", str(tmp_path))

    assert 2 == done.returncode
    assert "takes 2 nodes, and --cluster local has one: use --cluster slurm" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_kernel_that_lacks_what_makes_io_fast(tiny: dict[str, Any], tmp_path: Path, planned: Planned) -> None:
    """Without huge pages, statistics of the page cache, preallocation, writeback on request, advice and statx(2), a job
    measures its ceilings and its trials, and what can't be known is unknown.
    """
    require_strace()
    trials = {"repeats": 1, "warmups": 0, "ceiling": True}
    paths = planned(tiny | {"strategies": ["safetensors_tuned"], "trials": trials})

    def work() -> None:
        assert run_job(str(paths.root), only_job(paths).id) == "complete"

    faults = {calls: fault for lack in LACKS.values() for calls, fault in lack.items()}
    assert in_a_traced_child(work, faults, [], tmp_path / "strace") == "done"
    log = timing_log.read(paths.log(only_job(paths).id))
    assert all(sample.valid for sample in log.samples)
    assert {"write", "read", "copy"} == {row.operation for row in log.ceiling}
    assert not any(row.direct for row in log.ceiling)
