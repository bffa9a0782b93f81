"""The table of targets: what they are, how fast, and what speaks against their numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.__main__ import print_tables
from analysis.advice.assumptions import USUAL
from analysis.errors import ResultsError
from analysis.figures.figures import draw
from analysis.logs.load import load_results
from analysis.measures.setting import settings
from analysis.measures.storage import Storage, joined
from analysis.measures.storage_caveats import about_storage
from analysis.report.report import report
from jobs.timing_log import TimingLog
from support.logs import amended
from support.storage_studies import RATES, tables
from support.studies import MakeStudy, Show, StudyOnDisk


@pytest.fixture(scope="module")
def page(three_targets: StudyOnDisk) -> str:
    """The report about three targets."""
    return report(load_results(three_targets.root), USUAL)


@pytest.mark.parametrize(("style", "extension"), [("text", ".txt"), ("markdown", ".md"), ("latex", ".tex")])
def test_targets_come_first_and_fit_a_terminal(
    style: Any, extension: str, three_targets: StudyOnDisk, show: Any, file_regression: FileRegressionFixture
) -> None:
    """What each target is, then its small files, then save and load by target; in 80 columns."""
    shown = show(three_targets.root, style, columns=80)
    until = {"text": "Summary: ", "markdown": "### Summary", "latex": r"\caption{Summary"}[style]

    assert style != "text" or max(map(len, shown.partition(until)[0].splitlines())) <= 80
    file_regression.check(shown.partition(until)[0], extension=extension)


def test_a_row_holds_what_an_admin_looks_for(three_targets: StudyOnDisk, show: Show) -> None:
    """Filesystem, servers, options that matter, layout, devices down to the disk, use, ceilings, small files, proof."""
    scratch, local, cluster = tables(show(three_targets.root, "csv"))["storage"]

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


def test_a_missing_rate_stands_in_the_column_of_rates(page: str) -> None:
    """A dash with a footnote is aligned as the numbers above and below it are."""
    assert re.search(r'<td class="number">-\s*<sup', page)
    assert not re.search(r'<td class="text">-\s*<sup', page)


def test_small_files_have_a_table(three_targets: StudyOnDisk, show: Show) -> None:
    """One row per target and number of ranks that worked at the same time."""
    row = tables(show(three_targets.root, "csv"))["small_files"][0]

    assert (row["target"], row["ranks"]) == ("scratch", "1")
    assert {name: float(row[f"{name} / s"]) for name in RATES} == pytest.approx(RATES)


def test_commands_have_a_table_in_html(three_targets: StudyOnDisk, show: Show, page: str) -> None:
    """It has a caption, and the report has its commands."""
    assert "<caption>Commands around the trials of tiny</caption>" in show(three_targets.root, "html")
    assert "lfs setstripe -c 8 {directory}" in page


def test_commands_have_a_table(three_targets: StudyOnDisk, show: Show) -> None:
    """Each command of the study once per exit code, however its directory was called: how often it ran, how long."""
    rows = [
        (
            row["command"],
            row["target"],
            row["when"],
            row["exit code"],
            *map(float, (row["runs"], row["median [s]"], row["longest [s]"])),
        )
        for row in tables(show(three_targets.root, "csv"))["commands"]
    ]
    assert rows == [
        ("lfs setstripe -c 8 {directory}", "cluster", "prepare", "0", 3, 0.25, 0.25),
        ("drop-caches {node}", "cluster", "between", "0", 5, 2, 3),
        ("drop-caches {node}", "cluster", "between", "7", 1, 3.25, 3.25),
    ]


def test_commands_of_earlier_logs_are_as_they_ran(three_targets_copy: StudyOnDisk, show: Show) -> None:
    """Those logs don't have the study's words."""
    for path in three_targets_copy.paths.logs.glob("*-hdf5-cluster-*.h5"):
        amended(
            path,
            lambda log: log.hooks.__setitem__(slice(None), [replace(hook, study_command="") for hook in log.hooks]),
        )

    commands = {row["command"] for row in tables(show(three_targets_copy.root, "csv"))["commands"]}
    assert "lfs setstripe -c 8 {directory} on 2" in commands


def test_any_target_can_be_the_reference(three_targets: StudyOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of the study by default; a name that no target has is refused with those that there are."""
    print_tables([three_targets.root], "csv")
    of_scratch = tables(capsys.readouterr().out)["targets"]
    print_tables([three_targets.root], "csv", reference_target="cluster")
    of_cluster = tables(capsys.readouterr().out)["targets"]

    [one] = [row for row in of_scratch if (row["method"], row["target"]) == ("torch_save", "local")]
    [other] = [row for row in of_cluster if (row["method"], row["target"]) == ("torch_save", "local")]
    assert float(one["save over scratch"]) == pytest.approx(0.5)
    assert float(other["save over cluster"]) == pytest.approx(2)
    assert (one["save over scratch verdict"], other["save over cluster verdict"]) == ("slower", "faster")
    assert [row["notes"] for row in (one, other)] == ["", "1 2"]  # proven over what isn't
    with pytest.raises(ResultsError, match="no target is called 'nvme': name one of cluster, local, scratch"):
        print_tables([three_targets.root], "csv", reference_target="nvme")


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


def test_a_job_that_has_just_begun_proves_nothing(make_study: MakeStudy, show: Show) -> None:
    """Its log has neither state nor storage yet: what can be proven on its target is unknown."""
    made = make_study(targets={"a": {"path": "/a"}, "b": {"path": "/b"}}, strategies=["torch_save"])
    made.log("torch_save", on="a", save=[1.0])

    def begun(log: TimingLog) -> None:
        log.state, log.storage, log.samples = {}, {}, []

    amended(made.log("torch_save", on="b", save=[1.0]), begun)

    begun_only = tables(show(made.root, "csv"))["storage"][1]
    assert (begun_only["target"], begun_only["not proven here"]) == ("b", "unknown")


@pytest.mark.parametrize(("model", "shown"), [("unknown (no model)", "vda"), ("WD40", "vda (WD40, rotating)")])
def test_only_a_real_disk_rotates(model: str, shown: str, make_study: MakeStudy, show: Show) -> None:
    """The kernel takes every virtual disk for one that rotates."""
    disk = {"name": "vda", "kind": "disk", "below": [], "rotational": "1", "model": model}
    made = make_study(targets={"a": {"path": "/a"}}, strategies=["torch_save"])
    amended(made.log("torch_save", on="a", save=[1.0]), lambda log: log.storage.update(device=json.dumps([disk])))

    assert tables(show(made.root, "csv"))["storage"][0]["device"] == shown


@pytest.mark.parametrize("device", ["[", '[{"name": 3}]', '[{"name": "x", "below": 7, "kind": []}]', '"vda"', "[]"])
def test_any_text_for_a_device_is_harmless(device: str, three_targets_copy: StudyOnDisk, show: Show) -> None:
    """Who writes a log may write anything."""
    for path in three_targets_copy.paths.logs.glob("*.h5"):
        amended(path, lambda log: log.storage.update(device=device, capacity_bytes="lots"))

    assert "Storage: tiny" in show(three_targets_copy.root, "text")


def test_one_figure_has_all_targets(three_targets: StudyOnDisk) -> None:
    """Save and load of every method on each, with the ceilings; in words too."""
    drawn, _ = draw(settings(load_results(three_targets.root)))
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["extents=12, compressed=0%", "extents=3, compressed=100%"], "extents=3 to 12, compressed=0 to 100%"),
        (["pool=fast, copies=2", "pool=slow, copies=2"], "pool=fast or slow, copies=2"),
        (["data=single", "extents=2"], "data=single or extents=2"),
        (["ext4", "xfs"], "ext4 or xfs"),
        (["a=1"], "a=1"),
    ],
)
def test_what_jobs_recorded_differently(values: list[str], expected: str) -> None:
    """Numbers become a range, so that files of many jobs take one line."""
    assert expected == joined(values)
