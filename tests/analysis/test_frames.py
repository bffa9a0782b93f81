"""Tidy frames: which columns of which types, and which rows, each kind of frame has."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

import analysis
from jobs import timing_log
from jobs.timing_log import DiskUse, Header, Rank, Sample
from support.studies import MakeStudy, StudyOnDisk

JOB_COLUMNS = {
    "study": "str",
    "job_id": "str",
    "label": "str",
    "target": "str",
    "round": "int64",
    "nodes": "int64",
    "tasks_per_node": "int64",
}

SAMPLE_COLUMNS = JOB_COLUMNS | {
    "trial": "int64",
    "warmup": "bool",
    "rank": "int64",
    "operation": "str",
    "phase": "str",
    "start_s": "float64",
    "duration_s": "float64",
    "state_bytes": "int64",
    "durability": "str",
    "cache": "str",
    "resident_fraction": "float64",
    "cpu_s": "float64",
    "peak_rss_bytes": "float64",
    "valid": "bool",
    "reason": "str",
    "user_s": "float64",
    "system_s": "float64",
    "peak_extra_bytes": "float64",
    "device_read_bytes": "float64",
    "device_write_bytes": "float64",
    "read_calls": "float64",
    "write_calls": "float64",
    "minor_faults": "float64",
    "major_faults": "float64",
    "dirty_pages": "float64",
    "load_number": "int64",
}

DISK_COLUMNS = JOB_COLUMNS | {
    "trial": "int64",
    "file_count": "int64",
    "apparent_bytes": "int64",
    "allocated_bytes": "int64",
    "small_file_count": "int64",
    "largest_file_bytes": "int64",
    "directory_count": "float64",
}

MAY_BE_UNKNOWN = {
    "peak_rss_bytes", "peak_extra_bytes", "device_read_bytes", "device_write_bytes", "read_calls", "write_calls",
    "minor_faults", "major_faults", "dirty_pages", "directory_count",
}  # fmt: skip

RANK_COLUMNS = JOB_COLUMNS | {
    "rank": "int64",
    "host": "str",
    "node": "int64",
    "process_id": "int64",
    "clock_uncertainty_s": "float64",
}


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    """A frame's columns and dtypes; text is `str`, whatever pandas calls it."""
    return {
        name: "str" if pd.api.types.is_string_dtype(column) else str(column.dtype) for name, column in frame.items()
    }


def with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a log as frames have it: unknown is NaN, in columns of floats."""
    unknown = {name: math.nan if row[name] == -1 else float(row[name]) for name in MAY_BE_UNKNOWN & row.keys()}
    return row | unknown


def test_one_row_for_each_sample(three_methods: StudyOnDisk) -> None:
    """The frames hold every value of every sample and every disk use, with its job; -1 for unknown becomes NaN."""
    found = analysis.load_results(three_methods.root)
    logs = [timing_log.read(path) for path in sorted(three_methods.paths.logs.glob("*.h5"))]
    shared = list(JOB_COLUMNS)

    for frame, name in ((found.samples, "samples"), (found.disk, "disk")):
        expected = [
            {key: getattr(log.header, key) for key in shared} | with_nan(asdict(row))
            for log in logs
            for row in getattr(log, name)
        ]
        # As text: NaN stands in some of them, and is equal to nothing.
        assert list(map(repr, expected)) == list(map(repr, frame.to_dict("records")))
    assert len(found.samples) == 4 * 6 + 5 * 6 + 4 * 6


def test_frames_have_the_columns_and_dtypes_of_the_format(three_methods: StudyOnDisk) -> None:
    """A column of the log is a column of the frame, with a dtype that does not depend on the values."""
    found = analysis.load_results(three_methods.root)

    assert dtypes(found.samples) == SAMPLE_COLUMNS
    assert dtypes(found.disk) == DISK_COLUMNS
    assert [*JOB_COLUMNS, *(each.name for each in fields(Sample))] == list(SAMPLE_COLUMNS)
    assert dtypes(found.ranks) == RANK_COLUMNS
    assert [*JOB_COLUMNS, *(each.name for each in fields(DiskUse))] == list(DISK_COLUMNS)
    assert [*JOB_COLUMNS, *(each.name for each in fields(Rank))] == list(RANK_COLUMNS)


def test_frames_without_rows_have_the_same_columns_and_dtypes(make_study: MakeStudy) -> None:
    """Code that filters by `valid` works where every job failed, and where none reported."""
    study = make_study()
    for prepare in (lambda: None, lambda: study.log("torch_save", status="failed", error="early", state={})):
        prepare()
        found = analysis.load_results(study.root)

        assert dtypes(found.samples) == SAMPLE_COLUMNS
        assert dtypes(found.disk) == DISK_COLUMNS
        assert dtypes(found.ranks) == RANK_COLUMNS
        assert list(SAMPLE_COLUMNS) == list(found.samples[found.samples["valid"]].columns)


def test_one_row_for_each_job(make_study: MakeStudy) -> None:
    """A job has its header and its state; one without a log has what the plan knows, and why it has no more."""
    study = make_study(strategies=["torch_save", "tensorstore_t5x"])
    log = timing_log.read(study.log("torch_save", save=[1]))

    jobs = analysis.load_results(study.root).jobs.set_index("label")

    assert {each.name for each in fields(Header)} - {"label"} <= set(jobs.columns)
    found = jobs.loc["torch_save"]
    header = asdict(log.header)
    del header["label"]
    assert header == found[list(header)].to_dict()
    assert found["state_digest"] == log.state["digest"]
    assert found["state_bytes"] == log.state["state_bytes"]
    planned = jobs.loc["tensorstore_t5x"]
    assert planned[["study", "job_id", "target", "round", "nodes", "status", "error"]].to_dict() == {
        "study": "tiny",
        "job_id": "r01-tensorstore_t5x-disk-1x1",
        "target": "disk",
        "round": 1,
        "nodes": 1,
        "status": "no log",
        "error": "planned, but it never reported",
    }
    assert math.isnan(planned["state_bytes"])
