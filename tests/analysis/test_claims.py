"""What results claim of durability and of caches: no more than the logs prove, and visible wherever a number is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import load_results
from analysis.__main__ import check
from analysis.advice.advice import advise
from analysis.advice.assumptions import Assumptions
from analysis.advice.thin import thin_alone
from analysis.logs.operations import several_ranks, whole_operations
from analysis.measures.operation import Operation
from analysis.measures.setting import settings
from analysis.report import report
from jobs import timing_log
from jobs.timing_log import TimingLog
from support.logs import LogBuilder, amended, job
from support.studies import MakeStudy, Show, StudyOnDisk

SERVERS = "fuse.glusterfs keeps its files on servers"
UNPROVEN = {"durability_proof": SERVERS, "cold_proof": SERVERS, "fsync_guarantee": "the bricks have synced"}
TARGETS = {"nvme": {"path": "/nvme"}, "gluster": {"path": "/gluster"}}


def change(log: TimingLog, storage: dict[str, Any], durability: str, cache: str) -> None:
    """Give a log's storage these facts, and its saves and cold loads these words."""
    log.storage |= storage
    for number, sample in enumerate(log.samples):
        words = {"durability": durability} if sample.durability == "committed" else {}
        words |= {"cache": cache} if sample.cache == "cold" else {}
        log.samples[number] = timing_log.Sample(
            **{name: getattr(sample, name) for name in sample.__dataclass_fields__} | words
        )


@pytest.fixture
def two_targets(make_study: MakeStudy) -> StudyOnDisk:
    """One method on a local disk, where all is proven, and on GlusterFS, where nothing is."""
    study = make_study(targets=TARGETS, strategies=["torch_save"])
    proven = {"durability_proof": "proven", "cold_proof": "proven", "fsync_guarantee": "on the device"}
    for target, facts, words in (
        ("nvme", proven, ("committed", "cold")),
        ("gluster", UNPROVEN, ("committed-unproven", "client-cold")),
    ):
        path = study.log("torch_save", on=target, save=[2.0, 2.0], cold=[1.0, 1.0], warm=[1.0, 1.0])
        amended(path, lambda log, facts=facts, words=words: change(log, facts, *words))
    return study


def test_unproven_saves_are_called_that_in_the_tables(two_targets: StudyOnDisk, show: Show) -> None:
    """Heading, caveat and the comparison of targets say so, with the reason and with what fsync guarantees there."""
    text = " ".join(show(two_targets.root, "markdown").split())

    assert text.count("save, durability unproven [s]") == 2  # summary and phases of one of the two targets
    assert f"save: committed, and whether that is durable is unproven: {SERVERS}" in text
    assert "What fsync guarantees there: the bricks have synced" in text
    assert "saves that are proven durable on one target only: part of the ratio may be that less was stored" in text


def test_each_kind_of_cold_load_has_its_column(two_targets: StudyOnDisk, show: Show) -> None:
    """What was not in the node's cache stands in no column of loads from the device."""
    text = " ".join(show(two_targets.root, "markdown").split())

    assert "load, not in this node's cache [s]" in text
    assert "load, cold from the device [s]" in text
    assert f"load: not proven to come from the device: {SERVERS}" in text


def test_advice_and_report_say_what_is_unproven(two_targets: StudyOnDisk) -> None:
    """Who reads only the advice, or only the report, learns it too."""
    results = load_results(two_targets.root)
    [gluster] = [setting for setting in settings(results) if setting.target == "gluster"]

    assert advise(gluster, Assumptions()).schedules[0].load_kind is Operation.LOAD_CLIENT_COLD
    lines = " ".join(thin_alone(gluster, "cold"))
    assert f"saves whose durability is unproven ({SERVERS})" in lines
    assert "loads that were not in this node's cache" in lines
    page = report.report(results, Assumptions())
    assert "whether that is durable is unproven" in page
    assert "the bricks have synced" in page


def test_the_check_says_what_is_unproven(two_targets: StudyOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    """So does the check of the results, and only of the target that it is about."""
    check(two_targets.root)
    lines = [line for line in capsys.readouterr().out.splitlines() if "durable is unproven" in line]
    assert len(lines) == 1


def test_proven_and_unproven_saves_of_one_target_are_not_compared(make_study: MakeStudy) -> None:
    """Strategies are compared at the same durability only: a target whose jobs differ in it is two settings."""
    study = make_study(strategies=["torch_save", "tensorstore_basic"])
    for label, proof in (("torch_save", "proven"), ("tensorstore_basic", SERVERS)):
        path = study.log(label, save=[2.0, 2.0], cold=[1.0, 1.0])
        amended(path, lambda log, proof=proof: log.storage.update(durability_proof=proof, cold_proof="proven"))

    found = settings(load_results(study.root))

    assert len(found) == 2
    assert all("whether saves are proven durable" in setting.apart for setting in found)


def early(tmp_path: Path, **storage: Any) -> pd.DataFrame:
    """The samples of a log that was written before anything was proven, as they are read."""
    log = LogBuilder(job("torch_save"), read_shift=int(storage.pop("read_shift", 0)))
    log.trial(save=1.0, cold=1.0)
    log.log.storage |= storage
    for number, sample in enumerate(log.log.samples):
        values = {name: getattr(sample, name) for name in sample.__dataclass_fields__}
        log.log.samples[number] = timing_log.Sample(**values | {"dirty_pages": 0, "device_read_bytes": 0})
    log.write(tmp_path / "logs" / "early.h5")
    samples = load_results(tmp_path).samples
    return samples[samples["phase"] == "total"].set_index("operation")


CAVEAT = {"cache_caveat": "caches outside this kernel's page cache"}


def test_an_early_log_of_a_local_disk_is_believed(tmp_path: Path) -> None:
    """Its dirty and cached pages were seen."""
    samples = early(tmp_path)
    assert (samples["durability"]["save"], samples["cache"]["load"]) == ("committed", "cold")
    assert (samples["dirty_pages"]["save"], samples["device_read_bytes"]["load"]) == (0, 0)


def test_an_early_log_of_a_network_filesystem_claims_less(tmp_path: Path) -> None:
    """Durable was not proven, cold on another node is cold for that node; what nobody counts on FUSE is unknown."""
    samples = early(tmp_path, filesystem="fuse.glusterfs", read_shift=1, **CAVEAT)
    assert (samples["durability"]["save"], samples["cache"]["load"]) == ("committed-unproven", "client-cold")
    assert samples["dirty_pages"].isna().all()
    assert samples["device_read_bytes"].isna().all()
    jobs = load_results(tmp_path).jobs
    assert list(jobs["cold_loads"]) == ["not in this node's cache"]
    assert "fuse.glusterfs" in jobs["storage_durability_proof"].iloc[0]


def test_an_early_log_of_nfs_keeps_its_counts(tmp_path: Path) -> None:
    """NFS counts dirty pages and bytes of this machine's; they prove nothing of the server."""
    samples = early(tmp_path, filesystem="nfs4", **CAVEAT)
    assert samples["durability"]["save"] == "committed-unproven"
    assert (samples["dirty_pages"]["save"], samples["device_read_bytes"]["load"]) == (0, 0)


def test_one_unproven_rank_makes_the_save_unproven(tmp_path: Path) -> None:
    """A save of several ranks is proven durable where it is on every rank, and a load as cold as the least proven."""
    log = LogBuilder(job("torch_save", nodes=2))
    log.trial(save=[1.0, 1.0], cold=[1.0, 1.0])
    change_of_rank = [sample for sample in log.log.samples if sample.rank == 1]
    only = TimingLog(header=log.log.header, samples=change_of_rank)
    change(only, {}, "committed-unproven", "client-cold")
    log.log.samples = [sample for sample in log.log.samples if sample.rank == 0] + only.samples
    log.write(tmp_path / "logs" / "ranks.h5")
    results = load_results(tmp_path)

    whole = whole_operations(results.samples, several_ranks(results.samples, results.jobs))
    totals = whole[whole["phase"] == "total"].set_index("operation")

    assert totals["durability"]["save"] == "committed-unproven"
    assert totals["cache"]["load"] == "client-cold"
