"""`analysis.load`: tidy frames, from whatever holds timing logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray

import analysis
from analysis.errors import ResultsError
from analysis.logs import columns
from analysis.logs.columns import FLOATS, TEXTS, WHOLE
from analysis.logs.load import entries, load_results
from analysis.logs.merged import write_merged
from jobs import timing_log
from support.studies import MakeStudy, StudyOnDisk


def assert_same(first: analysis.Results, second: analysis.Results) -> None:
    """Assert that two results hold the same frames."""
    for name in ("jobs", "samples", "disk", "ceiling", "ranks", "metadata", "hooks"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name))


def test_results_may_be_named_in_many_ways(
    three_methods: StudyOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study, its parent, its logs, a merged file; as a path, a string, or a list: the frames are the same."""
    root = three_methods.root
    expected = analysis.load_results(root)
    merged = tmp_path / "merged.h5"
    write_merged(entries([root]), merged)
    logs = sorted(three_methods.paths.logs.glob("*.h5"))

    for results in (str(root), root.parent, [root], [str(root)], (root, root.parent), merged, str(merged), logs):
        assert_same(expected, analysis.load_results(results))
    monkeypatch.chdir(root)
    assert_same(expected, analysis.load_results("."))
    assert_same(expected, analysis.load_results(Path("..")))


def test_one_log_is_a_result(three_methods: StudyOnDisk) -> None:
    """A single log has its samples only, and nothing is said of jobs that nobody asked about."""
    found = analysis.load_results(three_methods.paths.log("r01-torch_save-disk-1x1"))

    assert list(found.jobs["label"]) == ["torch_save"]
    assert {"torch_save"} == set(found.samples["label"])


def test_a_parent_of_studies_has_them_all(make_study: MakeStudy, tmp_path: Path) -> None:
    """Below a directory, studies are found by their plan or by their logs, whatever else lies there."""
    planned, logged = make_study("planned"), make_study("logged")
    planned.log("torch_save", save=[1])
    logged.log("torch_save", save=[1])
    logged.paths.plan_json.unlink()
    (tmp_path / "results" / "logs").mkdir()
    (tmp_path / "results" / "notes.txt").write_text("mine")

    jobs = analysis.load_results(tmp_path / "results").jobs

    assert list(jobs.groupby("study").size().items()) == [("logged", 1), ("planned", 3)]


def test_the_same_log_twice_is_harmless(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """A log that is found in two places, or named twice, counts once."""
    expected = analysis.load_results(three_methods.root)
    log = three_methods.paths.log("r01-torch_save-disk-1x1")
    copy = tmp_path / "copy.h5"
    copy.write_bytes(log.read_bytes())

    assert_same(expected, analysis.load_results([copy, three_methods.root, log, copy]))


def test_two_logs_of_one_job_are_an_error(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """Results that contradict each other are not chosen from: the message names the job."""
    log = three_methods.paths.log("r01-torch_save-disk-1x1")
    other = tmp_path / "other.h5"
    other.write_bytes(log.read_bytes())
    three_methods.log("torch_save", save=[5])

    with pytest.raises(ResultsError, match="two different logs claim to be job r01-torch_save-disk-1x1 of study tiny"):
        analysis.load_results([three_methods.root, other])


def test_a_log_found_elsewhere_fills_its_place_in_the_plan(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """In whichever order they are named, a log says more than that it was missing."""
    expected = analysis.load_results(three_methods.root)
    log = three_methods.paths.log("r01-torch_save-disk-1x1")
    elsewhere = log.rename(tmp_path / "elsewhere.h5")

    assert set(analysis.load_results(three_methods.root).jobs["status"]) == {"no log", "complete"}
    assert_same(expected, analysis.load_results([three_methods.root, elsewhere]))
    assert_same(expected, analysis.load_results([elsewhere, three_methods.root]))


def test_a_log_that_cannot_be_read_says_more_than_none(make_study: MakeStudy, tmp_path: Path) -> None:
    """Of two copies of a study, one without the log and one with a broken one, the broken one is told of."""
    without, broken = make_study(below=tmp_path / "a"), make_study(below=tmp_path / "b")
    broken.log("torch_save", save=[1]).write_text("no HDF5")

    for results in ([without.root, broken.root], [broken.root, without.root]):
        statuses = analysis.load_results(results).jobs.set_index("label")["status"].to_dict()
        assert statuses == {"torch_save": "unreadable", "tensorstore_basic": "no log", "tensorstore_t5x": "no log"}


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["temperature"] = [1, 2, 3]


def _newer(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["schema_version"] = "ckpt-timing-logs", 99


def _hollow(path: Path, version: int = 1) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["schema_version"] = "ckpt-timing-logs", version
        file["jobs"] = [1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "does not exist: expected a study's directory, a log, or a merged file"),
        (Path.mkdir, "no timing logs in"),
        (lambda path: path.write_text("hello"), "is neither a timing log nor a merged file"),
        (lambda path: path.write_bytes(b""), "is neither a timing log nor a merged file"),
        (_foreign, "is no timing log: its attribute 'schema' is None"),
        (_newer, "has version 99 of the merged file; 2 is known here"),
        (_hollow, "is neither a timing log nor a merged file"),
        (lambda path: _hollow(path, 2), "is neither a timing log nor a merged file"),
    ],
    ids=["nothing", "empty directory", "text", "empty file", "foreign HDF5", "newer", "hollow", "hollow columns"],
)
def test_what_holds_no_results_is_told_in_one_message(
    make: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    """The error names the path, and what was expected there."""
    path = tmp_path / "results"
    make(path)

    with pytest.raises(ResultsError) as caught:
        analysis.load_results(path)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"study": 3, "jobs": []}', '{"study": {}, "jobs": [{"order": 1}]}'])
def test_a_plan_that_is_none_is_an_error(text: str, three_methods: StudyOnDisk) -> None:
    """Without its plan, a study could lack jobs and nobody would see it."""
    three_methods.paths.plan_json.write_text(text)

    with pytest.raises(ResultsError, match=r"plan\.json is no plan of this package"):
        analysis.load_results(three_methods.root)


def test_a_plan_of_a_later_release_is_read(three_methods: StudyOnDisk) -> None:
    """Analysis takes from a plan what it needs, and does not mind what else stands there."""
    expected = analysis.load_results(three_methods.root)
    plan = json.loads(three_methods.paths.plan_json.read_text())
    for job in plan["jobs"]:
        job["priority"] = 7
    three_methods.paths.plan_json.write_text(json.dumps(plan | {"comment": "new"}))

    assert_same(expected, analysis.load_results(three_methods.root))


def test_one_tidy_frame(three_methods: StudyOnDisk) -> None:
    """A notebook gets one row for each sample, with its job's and its state's facts, and every column's unit."""
    found = analysis.load(three_methods.root)
    results = analysis.load_results(three_methods.root)

    assert len(found) == len(results.samples)
    assert found["duration_s"].tolist() == results.samples["duration_s"].tolist()
    assert {"status", "strategy_options", "state_digest", "node_type", "host"} <= set(found.columns)
    assert found.columns.is_unique
    assert found.attrs["columns"]["duration_s"] == {"units": "s", "long_name": "duration, by a monotonic clock"}
    [fastest] = (
        found[found["label"] == "torch_save"]
        .query("valid and phase == 'total' and operation == 'save'")["duration_s"]
        .nsmallest(1)
    )
    assert fastest == 2.0


def test_load_numbers(three_methods: StudyOnDisk) -> None:
    """A log that numbers its loads keeps the numbers; in one that doesn't, the cold load is 0 and the warm one 1."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    old, numbered = timing_log.read(path), timing_log.read(path)
    old.samples = [replace(s, load_number=-1) for s in old.samples]
    numbered.samples = [replace(s, load_number=-1 if s.operation == "save" else 7) for s in numbered.samples]

    by_cache = {}
    for log in (old, numbered):
        log.write(path)
        samples = load_results(path).samples
        by_cache[log is old] = samples.groupby("cache")["load_number"].unique().map(list).to_dict()

    assert by_cache[True] == {"cold": [0], "n/a": [-1], "warm": [1]}
    assert by_cache[False] == {"cold": [7], "n/a": [-1], "warm": [7]}


def test_columns_are_what_h5py_reads(three_methods: StudyOnDisk) -> None:
    """Every column and attribute has h5py's values, in a log as it is written now and in one of the first version."""
    frozen = Path(analysis.__file__).parents[1] / "tests" / "jobs" / "data" / "v1.h5"
    for path in (frozen, *three_methods.paths.logs.glob("*.h5")):
        log = columns.read(path)
        with h5py.File(path) as file:
            for name in file.keys() & log.tables.keys():
                rows = log.tables[name]
                texts = [WHOLE[name][row] for row in TEXTS[name]]
                for values, column in zip([*rows.whole, *rows.floats], WHOLE[name] + FLOATS[name], strict=True):
                    if column in file[name]:
                        expected = file[name][column].asstr()[()] if column in texts else file[name][column][()]
                        read = [rows.words[code] for code in values] if column in texts else values
                        np.testing.assert_array_equal(expected, read)
            for name, attributes in log.attributes.items():
                assert dict(sorted(file[name].attrs.items())) == attributes


def test_processes_read_what_one_reads(three_methods: StudyOnDisk) -> None:
    """In the same order, and with the same errors."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    broken = path.with_name("broken.h5")
    broken.write_text("no HDF5")
    paths = [path] * 70 + [broken] + [path] * 70

    alone, together = (list(map(repr, columns.read_many(paths, workers))) for workers in (1, 2))

    assert alone == together
    assert "broken.h5" in alone[70]


def test_a_merged_file_of_the_first_version_is_read(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """It had a group for each job, with the whole log inside."""
    old = tmp_path / "old.h5"
    with h5py.File(old, "w") as file:
        file.attrs["schema"], file.attrs["schema_version"] = "ckpt-timing-logs", 1
        for entry in entries(three_methods.root):
            group = file.create_group(f"jobs/{entry.study}/{entry.job_id}")
            group.attrs.update({"study": entry.study, "job_id": entry.job_id, "status": entry.status, "error": ""})
            group.attrs["planned"] = json.dumps(entry.planned)
            timing_log.read(three_methods.paths.log(entry.job_id)).write_to(group.create_group("log"))

    assert_same(analysis.load_results(three_methods.root), analysis.load_results(old))


def test_others_read_a_merged_file(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """xarray opens its tables, with units and without phony dimensions; texts are places in a list of words."""
    merged = tmp_path / "merged.h5"
    write_merged(entries(three_methods.root), merged)

    with xarray.open_dataset(merged, group="/samples", engine="h5netcdf") as samples:
        seconds = samples["duration_s"]
        assert seconds.dims == ("samples_row",)
        assert seconds.attrs["units"] == "s"
        assert seconds.to_numpy().tolist() == analysis.load(three_methods.root)["duration_s"].tolist()
        words = samples[samples["phase"].attrs["places_in"]].to_numpy()
        assert words[samples["phase"].to_numpy()].tolist() == analysis.load(three_methods.root)["phase"].tolist()
