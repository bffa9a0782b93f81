"""What speaks against the numbers of a target: what it shares, lacks, or nobody could find out."""

from __future__ import annotations

import pytest

from analysis.logs.load import load_results
from analysis.measures.caveats import Kind
from analysis.measures.setting import settings
from analysis.tables.check import grouped, in_full, remarks
from support.logs import amended
from support.storage_studies import tables
from support.studies import Show, StudyOnDisk


def test_storage_has_caveats(three_targets: StudyOnDisk) -> None:
    """Direct I/O that isn't, targets on one disk, and one that is nearly full."""
    found = {
        (setting.target, caveat.kind): caveat.what for setting in settings(load_results(three_targets.root))
        for caveat in setting.caveats if caveat.where.startswith("target ")
    }  # fmt: skip

    assert found == {
        ("scratch", Kind.SHARED_STORAGE): "it lies on the disk vda of node1, as local does",
        ("scratch", Kind.NEARLY_FULL): "95% of its capacity is used",
        ("local", Kind.SHARED_STORAGE): "it lies on the disk vda of node1, as scratch does",
        ("local", Kind.NOT_DIRECT): "direct I/O is not direct here: writes and reads went through the page cache",
    }


def test_disks_of_one_name_on_two_hosts_are_two(three_targets_copy: StudyOnDisk) -> None:
    """Every node has a first disk."""
    for path in three_targets_copy.paths.logs.glob("*-local-*.h5"):
        amended(path, lambda log: log.provenance.update(host="node2"))

    kinds = {caveat.kind for setting in settings(load_results(three_targets_copy.root)) for caveat in setting.caveats}
    assert Kind.SHARED_STORAGE not in kinds


def test_two_mounts_of_one_volume(three_targets_copy: StudyOnDisk) -> None:
    """Where servers keep the files, the volume is what targets may share; one that is unknown is none."""
    volumes = {"cluster": "the GlusterFS volume of a:/brick", "scratch": "unknown (x)", "local": "unknown (x)"}
    volumes |= {"scratch": volumes["cluster"]}
    for target, volume in volumes.items():
        for path in three_targets_copy.paths.logs.glob(f"*-{target}-*.h5"):
            amended(path, lambda log, volume=volume: log.storage.update(volume=volume, device="unknown"))

    found = {
        (setting.target, caveat.what)
        for setting in settings(load_results(three_targets_copy.root))
        for caveat in setting.caveats
        if caveat.kind is Kind.SHARED_STORAGE
    }
    assert found == {
        ("cluster", "it lies on the GlusterFS volume of a:/brick, as scratch does"),
        ("scratch", "it lies on the GlusterFS volume of a:/brick, as cluster does"),
    }


def test_memory_below_is_named(three_targets_copy: StudyOnDisk, show: Show) -> None:
    """Where no device lies below, since the files are in memory, the row says so."""
    for path in three_targets_copy.paths.logs.glob("*-local-*.h5"):
        amended(path, lambda log: log.storage.update(device="memory: overlay, whose upper directory /up lies on tmpfs"))

    local = tables(show(three_targets_copy.root, "csv"))["storage"][1]
    assert local["device"] == "memory: overlay, whose upper directory /up lies on tmpfs"


def test_a_layout_that_nobody_could_ask_for_is_a_caveat(three_targets_copy: StudyOnDisk) -> None:
    """Where servers lay out the files; a local filesystem's layout matters less."""
    for path in three_targets_copy.paths.logs.glob("*.h5"):
        amended(path, lambda log: log.storage.update(layout="unknown (the program lfs is not installed here)"))

    unknown = [
        caveat for setting in settings(load_results(three_targets_copy.root)) for caveat in setting.caveats
        if caveat.kind is Kind.UNKNOWN_LAYOUT
    ]  # fmt: skip
    assert [(caveat.where, caveat.what) for caveat in unknown] == [
        ("target cluster", "how its files are laid out is unknown: the program lfs is not installed here")
    ]


def test_check_says_a_thing_of_many_jobs_once(three_targets: StudyOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped by kind, with how often, where, and the remedy; in full, every one has a line."""
    monkeypatch.setenv("COLUMNS", "100")
    found = remarks(settings(load_results(three_targets.root)))
    lines, every = grouped(found), in_full(found)

    assert len({remark.kind for remark in found}) < len(found) == len(every)
    assert len(lines) < 24
    assert max(map(len, lines)) <= 100
    shown = " ".join(" ".join(lines).split())
    assert (
        "2 target scratch: it lies on the disk vda of node1, as local does (and 1 more like it) on scratch, local"
        in shown
    )
    assert f"`--all` lists all {len(found)} of them" in shown
