"""Logs of training loops in analysis: every row of theirs, with its job; in a merged file too."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.__main__ import merge
from analysis.logs.frames import Results
from analysis.logs.load import load_results
from jobs.timing_log import Block, LoopSave, Step, read
from support.logs import LogBuilder, job

BLOCK = Block(
    block=0, rank=0, every=10, opening=False, start_s=5.0, duration_s=3.5, peak_memory_bytes=-1, end_memory_bytes=10**9,
    threads=-1, descriptors=12, cpu_s=3.0, helper_cpu_s=0.5, valid=True, reason="",
)  # fmt: skip
STEP = Step(block=0, step=-2, rank=0, start_s=5.0, duration_s=1.25, blocked_s=0.25, collective_s=0.125)
SAVE = LoopSave(
    block=0, save=0, rank=0, step=0, start_s=6.0, wait_s=0.0, snapshot_s=0.125, call_s=0.125, update_wait_s=0.0,
    commit_s=1.5, state_bytes=10**9, durability="committed", dirty_pages=-1, valid=True, reason="",
)  # fmt: skip
FAILED = replace(SAVE, save=1, commit_s=math.nan, valid=False, reason="OSError: full")


def write(directory: Path, **rows: Any) -> Path:
    """A log with a training loop, and one without, in a directory of a study."""
    with_loop = LogBuilder(job("torch_save+way=thread"), way="thread", loop='{"step": "idle"}')
    with_loop.log.blocks, with_loop.log.steps, with_loop.log.saves = (
        [BLOCK],
        [STEP, replace(STEP, step=0)],
        [SAVE, FAILED],
    )
    for name, content in rows.items():
        setattr(with_loop.log, name, content)
    path = directory / "logs" / "loop.h5"
    with_loop.write(path)
    LogBuilder(job("torch_save")).trial(save=1.0, cold=1.0).write(directory / "logs" / "trials.h5")
    return path


def assert_frames(results: Results) -> None:
    """All rows are there, with the attributes of their job, and unknown numbers are NaN."""
    assert [1, 2, 2] == [len(frame) for frame in (results.blocks, results.steps, results.saves)]
    for frame, row in ((results.blocks, BLOCK), (results.steps, STEP), (results.saves, SAVE)):
        assert {"torch_save+way=thread"} == set(frame["label"])
        assert set(asdict(row)) <= set(frame.columns)
    assert [-2, 0] == results.steps["step"].tolist()
    assert [True, False] == results.saves["valid"].tolist()
    unknown = results.blocks.loc[0, ["peak_memory_bytes", "threads"]], results.saves["dirty_pages"]
    assert all(values.isna().all() for values in unknown)
    assert [False, True] == results.saves["commit_s"].isna().tolist()
    assert (1.5, 12, 10**9) == (
        results.saves["commit_s"][0], results.blocks["descriptors"][0], results.blocks["end_memory_bytes"][0],
    )  # fmt: skip
    ways = results.jobs.set_index("label")["way"]
    assert ("thread", "") == (ways["torch_save+way=thread"], ways["torch_save"])


def test_frames_and_a_merged_file(tmp_path: Path) -> None:
    """The rows come from the logs and from a merged file alike."""
    write(tmp_path / "study")
    results = load_results(tmp_path / "study")
    assert_frames(results)
    merge(tmp_path / "study", output=tmp_path / "merged.h5")
    merged = load_results(tmp_path / "merged.h5")
    assert_frames(merged)
    for name in ("blocks", "steps", "saves"):
        pd.testing.assert_frame_equal(getattr(results, name), getattr(merged, name))


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Each row of each table, as the job left it."""
    log = read(write(tmp_path))
    assert ([BLOCK], STEP) == (log.blocks, log.steps[0])
    assert repr([SAVE, FAILED]) == repr(log.saves)  # NaN is not equal to itself


@pytest.mark.parametrize(
    "rows",
    [
        {"steps": [replace(STEP, duration_s=-1.0)]},
        {"steps": [replace(STEP, duration_s=math.nan)]},
        {"saves": [replace(SAVE, commit_s=-1.0)]},
        {"saves": [replace(SAVE, wait_s=1e300)]},
        {"blocks": [replace(BLOCK, threads=-2)]},
    ],
)
def test_impossible_rows(rows: dict[str, Any], tmp_path: Path) -> None:
    """A log with a number that nobody can have measured is refused."""
    write(tmp_path, **rows)
    jobs = load_results(tmp_path).jobs.set_index("label")
    assert ["unreadable"] == [
        status for status, error in zip(jobs["status"], jobs["error"], strict=False) if "impossible" in str(error)
    ]
