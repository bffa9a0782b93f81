"""Plans and logs whose values are impossible, and texts that a spreadsheet would compute."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.advice.assumptions import USUAL
from analysis.errors import ResultsError
from analysis.logs.load import entries
from analysis.logs.merged import write_merged
from analysis.report import report
from analysis.tables.csv import no_formula
from analysis.tables.render import render
from analysis.tables.table import Marked, Number, Share, Table
from jobs import timing_log
from support.logs import LogBuilder, job
from support.studies import StudyOnDisk


@pytest.mark.parametrize(
    "changed", [{"id": "../../../escaped"}, {"id": 3}, {"nodes": "four"}, {"round": None}, {"target": ["a"]}]
)
def test_a_hostile_plan_is_one_message(changed: dict[str, Any], three_methods: StudyOnDisk) -> None:
    """An id that could name a file elsewhere, or a value of another type, is told with the plan's name."""
    plan = json.loads(three_methods.paths.plan_json.read_text())
    plan["jobs"][0] |= changed
    three_methods.paths.plan_json.write_text(json.dumps(plan))

    with pytest.raises(ResultsError, match=r"plan\.json is no plan of this package \(.*\)$"):
        entries(three_methods.root)


FORMULAS = [
    '=cmd|"/c calc"!A1',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1+1",
    "-2+3+cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\uff1d1+1",
]


def test_texts_are_no_formulas_in_csv() -> None:
    """Every text that a spreadsheet would compute begins with an apostrophe; numbers, negative ones too, don't."""
    table = Table(
        "hostile",
        FORMULAS[0],
        ("", FORMULAS[2], "change", "number"),
        tuple((Marked(text, (1,)), text, Share(-0.25), Number(-1.5)) for text in FORMULAS),
        ("a note, =1+1; -2+3",),
        (FORMULAS[1],),
    )

    written = render([table], "csv")
    lines = written.splitlines()
    cells = [cell for line in lines[: 1 + len(FORMULAS)] for cell in next(csv.reader([line]))]

    assert [cell for cell in cells if cell[:1] in "=+@-"] == ["-0.25", "-1.5"] * len(FORMULAS)
    assert lines[0] == "table,title,method,notes,'+1+1,change,number"
    assert lines[3] == """hostile,"'=cmd|""/c calc""!A1",'+1+1,1,'+1+1,-0.25,-1.5"""
    assert lines[-2:] == ["# [1] @SUM(1+1)*cmd|' /C calc'!A0", "# a note, '=1+1; '-2+3"]


@pytest.mark.parametrize("text", ["-", "", "-1.5", "+25.0 %", "-1e-05", "torch_save+crc=False", "a-b"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    """Numbers with a sign, the mark of what is missing, and labels with options are no formulas."""
    assert no_formula(text) == text


def test_the_report_s_files_hold_no_formulas(three_methods: StudyOnDisk, tmp_path: Path) -> None:
    """Nor do the frames that a report carries as CSV."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    log = timing_log.read(path)
    log.header.error, log.header.status = "=1+1", "failed"
    log.write(path)
    page = tmp_path / "report.html"
    report.write(report.report(analysis.load_results(three_methods.root), USUAL), page)

    files = re.findall(r"data:application/gzip;base64,([A-Za-z0-9+/=]+)", page.read_text())
    texts = [gzip.decompress(base64.b64decode(each)).decode() for each in files]

    assert any(",'=1+1," in text for text in texts)
    assert not any(",=1+1" in text for text in texts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"duration_s": -1.0}, "impossible: its duration in s is -1"),
        ({"duration_s": math.nan}, "impossible: its duration in s is nan"),
        ({"duration_s": math.inf}, "impossible: its duration in s is inf"),
        ({"duration_s": 1e300}, "impossible: its duration in s is 1e+300"),
        ({"state_bytes": -5}, "impossible: its state_bytes is -5"),
        ({"peak_rss_bytes": -5}, "impossible: its peak_rss_bytes is -5"),
        ({"phase": "call", "duration_s": 100.0}, "impossible: longer than its whole operation"),
    ],
)
def test_what_cannot_have_been_measured_is_no_valid_sample(
    changed: dict[str, Any], message: str, three_methods: StudyOnDisk, tmp_path: Path
) -> None:
    """It stays in the frame, invalid and with its reason, whether it comes from a log or from a merged file."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    log = timing_log.read(path)
    place = max(
        n for n, s in enumerate(log.samples) if s.phase == changed.get("phase", "total") and s.operation == "save"
    )
    log.samples[place] = replace(log.samples[place], **changed)
    log.write(path)
    merged = tmp_path / "merged.h5"
    write_merged(entries(three_methods.root), merged)

    for results in (three_methods.root, merged):
        samples = analysis.load_results(results).samples
        [reason] = samples[~samples["valid"]]["reason"]
        assert reason.startswith(message)


@pytest.mark.parametrize("changed", [{"nodes": 0}, {"nodes": 10**12}, {"strategy_facts": "{nonsense"}, {"round": -1}])
def test_a_job_that_cannot_be_is_unreadable(changed: dict[str, Any], three_methods: StudyOnDisk) -> None:
    """A log with an impossible header is named, in one line, and the others are read."""
    path = three_methods.paths.log("r01-torch_save-disk-1x1")
    log = timing_log.read(path)
    log.header = replace(log.header, **changed)
    log.write(path)

    found = {entry.job_id: entry for entry in entries(three_methods.root)}

    bad = found["r01-torch_save-disk-1x1"]
    assert (bad.status, len(bad.error.splitlines()), str(path) in bad.error) == ("unreadable", 1, True)
    assert {entry.status for entry in found.values()} == {"unreadable", "complete"}


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("metadata", {"duration_s": -1.0}),
        ("metadata", {"duration_s": math.nan}),
        ("metadata", {"count": -1}),
        ("hooks", {"trial": -2}),
        ("hooks", {"duration_s": math.inf}),
        ("hooks", {"exit_code": -1}),
    ],
)
def test_small_files_and_commands_that_cannot_be(table: str, changed: dict[str, Any], tmp_path: Path) -> None:
    """A log with an impossible number of files or duration of a command is refused, naming table and column."""
    built = LogBuilder(job("torch_save")).trial(save=1.0).metadata({"stat": 5.0}).hook("true")
    rows = getattr(built.log, table)
    rows[0] = replace(rows[0], **changed)

    [entry] = entries(built.write(tmp_path / "study" / "logs" / "r01-torch_save-disk-1x1.h5").parents[1])

    [column] = changed
    assert (entry.status, f"a {column} in its /{table} is" in entry.error) == ("unreadable", True)
