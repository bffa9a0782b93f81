"""What the targets of a study are, how fast, and what speaks against their numbers."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.__main__ import print_tables
from analysis.advice.assumptions import USUAL
from analysis.errors import ResultsError
from analysis.figures.figures import draw
from analysis.logs.load import load_results
from analysis.measures.caveats import Kind
from analysis.measures.setting import settings
from analysis.measures.storage import Storage
from analysis.measures.storage_caveats import about_storage
from analysis.report.report import report
from analysis.tables.check import grouped, in_full, remarks
from jobs.timing_log import Ceiling, Hook, Metadata, TimingLog
from support.logs import GB, amended
from support.studies import MakeStudy, Show, StudyOnDisk

DISK = {"name": "vda", "kind": "disk", "below": [], "model": "unknown (the disk has no model)", "rotational": "0"}
LOOP = {
    "name": "loop0", "kind": "loop", "image": "/images/scratch", "image_filesystem": "ext4", "direct_io": True,
    "below": [DISK],
}  # fmt: skip

SCRATCH: dict[str, Any] = {
    "filesystem": "xfs", "filesystem_version": "Linux 6.18", "source": "/dev/loop0",
    "options": "rw,noatime,logbsize=256k",
    "servers": "none: its files are on this machine", "layout": "bsize=4096, sunit=0",
    "written_layout": "extents=1", "device": json.dumps([LOOP]), "capacity_bytes": 10 * GB, "free_bytes": GB // 2,
    "fsync_guarantee": "data are on the device", "durability_proof": "proven", "cold_proof": "proven",
}  # fmt: skip
LOCAL: dict[str, Any] = {**SCRATCH, "filesystem": "ext4", "device": json.dumps([DISK]), "free_bytes": 9 * GB}
CLUSTER: dict[str, Any] = {
    "filesystem": "fuse.glusterfs", "filesystem_version": "10.3", "source": "server:/volume",
    "options": "rw,user_id=0,group_id=0,max_read=131072", "servers": "mounted_from=server:/volume, bricks=2, hosts=a+b",
    "layout": "bricks=2, distributed", "written_layout": "bricks=a:/brick1", "device": "unknown (no device is seen)",
    "capacity_bytes": 4000 * GB, "free_bytes": 1000 * GB, "fsync_guarantee": "the bricks have synced",
    "durability_proof": "the kernel counts no dirty pages on fuse.glusterfs",
    "cold_proof": "fuse.glusterfs may hold files in its servers' memory",
}  # fmt: skip

RATES = {"create": 500.0, "stat": 3000.0, "read": 900.0, "unlink": 180.0, "mkdir": 300.0, "rmdir": 250.0}


def ceilings(*, honoured: bool) -> list[Ceiling]:
    """Direct I/O at 2 GB/s and buffered at 1 GB/s, or all through the page cache."""
    return [
        Ceiling(
            when=when, operation=operation, size_bytes=GB, start_s=0.0, duration_s=1.0 if buffered else 0.5,
            direct=honoured and not buffered, buffered=buffered, resident_fraction=0.0,
        )
        for when in ("before", "after")
        for operation in ("write", "read")
        for buffered in (False, True)
    ]  # fmt: skip


def small_files() -> list[Metadata]:
    """What one rank did with a hundred files."""
    return [
        Metadata(
            when="before", operation=operation, count=100, size_bytes=4096, start_s=float(number),
            duration_s=100 / rate, rank=0, made_by=0, ranks=1,
        )
        for number, (operation, rate) in enumerate(RATES.items())
    ]  # fmt: skip


def hooks(number: int) -> list[Hook]:
    """A layout that is set once, and caches that are dropped after each of two saves; the last time that fails."""
    dropped = [0, 7] if number == 3 else [0, 0]
    runs = [
        ("prepare", -1, 0, 0.25, "lfs setstripe -c 8 {directory}"),
        *(("between", trial, code, number + trial / 4, "drop-caches {node}") for trial, code in enumerate(dropped)),
    ]
    return [
        Hook(
            when=when, trial=trial, command=f"{command} on {number}", start_s=trial + 5.0, duration_s=seconds,
            exit_code=code, output="", rank=0, study_command=command,
        )
        for when, trial, code, seconds, command in runs
    ]  # fmt: skip


def _with_facts(log: TimingLog, *, storage: dict[str, Any], named: str, honoured: bool) -> None:
    log.storage.update(storage)
    log.ceiling.extend(ceilings(honoured=honoured))
    log.metadata.extend(small_files())
    log.provenance.update(study=named, host="node1")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyOnDisk:
    """Two methods on three targets, which the study names in an order of its own; two of them lie on one disk."""
    names = ("scratch", "local", "cluster")
    made = make_study(
        targets={name: {"path": f"/{name}"} for name in names}, rounds=3, strategies=["torch_save", "hdf5"]
    )
    named = json.dumps({"targets": dict.fromkeys(names)})
    for target, storage, seconds in (("scratch", SCRATCH, 1.0), ("local", LOCAL, 2.0), ("cluster", CLUSTER, 4.0)):
        for number in (1, 2, 3):
            for label, factor in (("torch_save", 1.0), ("hdf5", 1.5)):
                times = [seconds * factor * (1 + 0.01 * number), seconds * factor * (1.01 + 0.01 * number)]
                unproven = {0: 0.0, 1: 0.0} if target == "cluster" else {}
                path = made.log(label, on=target, number=number, save=times, cold=times, unproven=unproven)
                amended(path, partial(_with_facts, storage=storage, named=named, honoured=target != "local"))
                if (target, label) == ("cluster", "hdf5"):
                    amended(path, lambda log, number=number: log.hooks.extend(hooks(number)))
    return made


def tables(shown: str) -> dict[str, list[dict[str, str]]]:
    """The rows of all tables in CSV, by name."""
    blocks = [[line for line in block.splitlines() if line[:1] != "#"] for block in shown.split("\n\n")]
    read = [list(csv.DictReader(io.StringIO("\n".join(block)))) for block in blocks]
    return {rows[0]["table"]: rows for rows in read if rows}


@pytest.mark.parametrize(("style", "extension"), [("text", ".txt"), ("markdown", ".md"), ("latex", ".tex")])
def test_targets_come_first_and_fit_a_terminal(
    style: Any, extension: str, study: StudyOnDisk, show: Any, file_regression: FileRegressionFixture
) -> None:
    """What each target is, then its small files, then save and load by target; in 80 columns."""
    shown = show(study.root, style, columns=80)
    until = {"text": "Summary: ", "markdown": "### Summary", "latex": r"\caption{Summary"}[style]

    assert style != "text" or max(map(len, shown.partition(until)[0].splitlines())) <= 80
    file_regression.check(shown.partition(until)[0], extension=extension)


def test_a_row_holds_what_an_admin_looks_for(study: StudyOnDisk, show: Show) -> None:
    """Filesystem, servers, options that matter, layout, devices down to the disk, use, ceilings, small files, proof."""
    scratch, local, cluster = tables(show(study.root, "csv"))["storage"]

    assert [row["target"] for row in (scratch, local, cluster)] == ["scratch", "local", "cluster"]
    assert scratch["filesystem"] == "xfs, Linux 6.18"
    assert scratch["mount options"] == "logbsize=256k"
    assert scratch["layout"] == "bsize=4096, sunit=0; a written file: extents=1"
    assert scratch["device"] == "loop0 (image on ext4, direct I/O) on vda"
    assert scratch["capacity, used"] == "10 GB, 95% used"
    assert [float(scratch[f"{way} write [GB/s]"]) for way in ("direct", "buffered")] == [2, 1]
    assert scratch["create / stat / unlink per s"] == "500 / 3,000 / 180"
    assert scratch["not proven here"] == "nothing"
    assert (local["direct write [GB/s]"], float(local["buffered write [GB/s]"])) == ("-", pytest.approx(4 / 3))
    assert cluster["servers"] == "mounted_from=server:/volume, bricks=2, hosts=a+b"
    assert cluster["device"] == "on servers"
    assert cluster["not proven here"] == "durability, cold loads"


def test_small_files_have_a_table(study: StudyOnDisk, show: Show) -> None:
    """One row per target and number of ranks that worked at the same time."""
    row = tables(show(study.root, "csv"))["small_files"][0]

    assert (row["target"], row["ranks"]) == ("scratch", "1")
    assert {name: float(row[f"{name} / s"]) for name in RATES} == pytest.approx(RATES)


@pytest.mark.parametrize("style", ["csv", "html"])
def test_commands_have_a_table(style: Any, study: StudyOnDisk, show: Show) -> None:
    """Each command of the study once per exit code, however its directory was called: how often it ran, how long."""
    shown = show(study.root, style)

    if style == "html":
        assert "<caption>Commands around the trials of tiny</caption>" in shown
        assert "lfs setstripe -c 8 {directory}" in report(load_results(study.root), USUAL)
        return
    rows = [
        (
            row["command"],
            row["target"],
            row["when"],
            row["exit code"],
            *map(float, (row["runs"], row["median [s]"], row["longest [s]"])),
        )
        for row in tables(shown)["commands"]
    ]
    assert rows == [
        ("lfs setstripe -c 8 {directory}", "cluster", "prepare", "0", 3, 0.25, 0.25),
        ("drop-caches {node}", "cluster", "between", "0", 5, 2, 3),
        ("drop-caches {node}", "cluster", "between", "7", 1, 3.25, 3.25),
    ]


def test_commands_of_earlier_logs_are_as_they_ran(study: StudyOnDisk, show: Show) -> None:
    """Those logs don't have the study's words."""
    for path in study.paths.logs.glob("*-hdf5-cluster-*.h5"):
        amended(
            path,
            lambda log: log.hooks.__setitem__(slice(None), [replace(hook, study_command="") for hook in log.hooks]),
        )

    commands = {row["command"] for row in tables(show(study.root, "csv"))["commands"]}
    assert "lfs setstripe -c 8 {directory} on 2" in commands


def test_any_target_can_be_the_reference(study: StudyOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of the study by default; a name that no target has is refused with those that there are."""
    print_tables([study.root], "csv")
    of_scratch = tables(capsys.readouterr().out)["targets"]
    print_tables([study.root], "csv", reference_target="cluster")
    of_cluster = tables(capsys.readouterr().out)["targets"]

    [one] = [row for row in of_scratch if (row["method"], row["target"]) == ("torch_save", "local")]
    [other] = [row for row in of_cluster if (row["method"], row["target"]) == ("torch_save", "local")]
    assert float(one["save over scratch"]) == pytest.approx(0.5)
    assert float(other["save over cluster"]) == pytest.approx(2)
    assert (one["save over scratch verdict"], other["save over cluster verdict"]) == ("slower", "faster")
    assert [row["notes"] for row in (one, other)] == ["", "1 2"]  # proven over what isn't
    with pytest.raises(ResultsError, match="no target is called 'nvme': name one of cluster, local, scratch"):
        print_tables([study.root], "csv", reference_target="nvme")


def test_storage_has_caveats(study: StudyOnDisk) -> None:
    """Direct I/O that isn't, targets on one disk, and one that is nearly full."""
    found = {
        (setting.target, caveat.kind): caveat.what for setting in settings(load_results(study.root))
        for caveat in setting.caveats if caveat.where.startswith("target ")
    }  # fmt: skip

    assert found == {
        ("scratch", Kind.SHARED_STORAGE): "it lies on the disk vda of node1, as local does",
        ("scratch", Kind.NEARLY_FULL): "95% of its capacity is used",
        ("local", Kind.SHARED_STORAGE): "it lies on the disk vda of node1, as scratch does",
        ("local", Kind.NOT_DIRECT): "direct I/O is not direct here: writes and reads went through the page cache",
    }


def test_disks_of_one_name_on_two_hosts_are_two(study: StudyOnDisk) -> None:
    """Every node has a first disk."""
    for path in study.paths.logs.glob("*-local-*.h5"):
        amended(path, lambda log: log.provenance.update(host="node2"))

    kinds = {caveat.kind for setting in settings(load_results(study.root)) for caveat in setting.caveats}
    assert Kind.SHARED_STORAGE not in kinds


def test_two_mounts_of_one_volume(study: StudyOnDisk) -> None:
    """Where servers keep the files, the volume is what targets may share; one that is unknown is none."""
    volumes = {"cluster": "the GlusterFS volume of a:/brick", "scratch": "unknown (x)", "local": "unknown (x)"}
    volumes |= {"scratch": volumes["cluster"]}
    for target, volume in volumes.items():
        for path in study.paths.logs.glob(f"*-{target}-*.h5"):
            amended(path, lambda log, volume=volume: log.storage.update(volume=volume, device="unknown"))

    found = {
        (setting.target, caveat.what)
        for setting in settings(load_results(study.root))
        for caveat in setting.caveats
        if caveat.kind is Kind.SHARED_STORAGE
    }
    assert found == {
        ("cluster", "it lies on the GlusterFS volume of a:/brick, as scratch does"),
        ("scratch", "it lies on the GlusterFS volume of a:/brick, as cluster does"),
    }


def test_memory_below_is_named(study: StudyOnDisk, show: Show) -> None:
    """Where no device lies below, since the files are in memory, the row says so."""
    for path in study.paths.logs.glob("*-local-*.h5"):
        amended(path, lambda log: log.storage.update(device="memory: overlay, whose upper directory /up lies on tmpfs"))

    local = tables(show(study.root, "csv"))["storage"][1]
    assert local["device"] == "memory: overlay, whose upper directory /up lies on tmpfs"


def test_a_layout_that_nobody_could_ask_for_is_a_caveat(study: StudyOnDisk) -> None:
    """Where servers lay out the files; a local filesystem's layout matters less."""
    for path in study.paths.logs.glob("*.h5"):
        amended(path, lambda log: log.storage.update(layout="unknown (the program lfs is not installed here)"))

    unknown = [
        caveat for setting in settings(load_results(study.root)) for caveat in setting.caveats
        if caveat.kind is Kind.UNKNOWN_LAYOUT
    ]  # fmt: skip
    assert [(caveat.where, caveat.what) for caveat in unknown] == [
        ("target cluster", "how its files are laid out is unknown: the program lfs is not installed here")
    ]


def test_check_says_a_thing_of_many_jobs_once(study: StudyOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped by kind, with how often, where, and the remedy; in full, every one has a line."""
    monkeypatch.setenv("COLUMNS", "100")
    found = remarks(settings(load_results(study.root)))
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


def test_logs_without_any_of_it_have_unknown_facts(make_study: MakeStudy, show: Show) -> None:
    """Earlier logs lack nearly all; where they had a caveat about caches, nothing is called proven."""
    made = make_study(targets={"a": {"path": "/a"}, "b": {"path": "/b"}}, strategies=["torch_save"])
    made.log("torch_save", on="a", save=[1.0])
    amended(
        made.log("torch_save", on="b", save=[1.0]),
        lambda log: log.storage.update(filesystem="fuse.mfs", cache_caveat="its servers"),
    )

    local, fuse = tables(show(made.root, "csv"))["storage"]

    assert (local["servers"], local["layout"], local["capacity, used"], local["not proven here"]) == (
        "unknown",
        "unknown",
        "unknown",
        "nothing",
    )
    assert fuse["not proven here"] == "durability, cold loads"


@pytest.mark.parametrize("device", ["[", '[{"name": 3}]', '[{"name": "x", "below": 7, "kind": []}]', '"vda"', "[]"])
def test_any_text_for_a_device_is_harmless(device: str, study: StudyOnDisk, show: Show) -> None:
    """Who writes a log may write anything."""
    for path in study.paths.logs.glob("*.h5"):
        amended(path, lambda log: log.storage.update(device=device, capacity_bytes="lots"))

    assert "What the targets of tiny are" in show(study.root, "text")


def test_one_figure_has_all_targets(study: StudyOnDisk) -> None:
    """Save and load of every method on each, with the ceilings; in words too."""
    drawn, _ = draw(settings(load_results(study.root)))
    [figure] = [each for each in drawn if each.kind == "targets"]

    labels = [label.get_text() for label in figure.figure.axes[0].get_yticklabels()]
    assert [" ".join(label.split()) for label in labels] == [
        "scratch save", "scratch load, cold from the device", "local save", "local load, cold from the device",
        "cluster save", "cluster load, cold unproven",
    ]  # fmt: skip
    assert "scratch, save: torch_save 1.0" in figure.alt
    assert "ceiling 2" in figure.alt
    assert "Loads of different kinds stand side by side" in figure.caption


def test_one_target_needs_no_comparison(three_methods: StudyOnDisk, show: Show) -> None:
    """A study of one target has its facts, and no table of targets."""
    found = tables(show(three_methods.root, "csv"))

    assert "storage" in found
    assert "targets" not in found


def test_axes_of_one_target_are_on_its_disk() -> None:
    """What varies is the target's layout: that all of it lies on one disk surprises nobody."""
    on_disk = Storage(below=frozenset({"the disk vda of node1"}))

    assert not list(about_storage("a+n=1", on_disk, {"a+n=1": on_disk, "a+n=2": on_disk}))
    assert len(list(about_storage("a+n=1", on_disk, {"a+n=1": on_disk, "a+n=2": on_disk, "b": on_disk}))) == 1
