"""The tables of training loops: as text, in other formats, of merged files, and two results side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from analysis.__main__ import app
from analysis.logs.load import load_results
from analysis.measures.comparison import compare
from analysis.tables.before_after import contrast
from analysis.tables.lost import loop_tables
from analysis.tables.table import Judged, Table, shown
from jobs.timing_log import TimingLog
from support.loops import Costs, LoopSimulation
from support.studies import Show

SYNC = Costs(call_s=3.0, latency_s=3.0)
BEHIND = Costs(snapshot_s=0.5, call_s=0.1, latency_s=5.2, interference_s=0.1, tail_s=(0.3, 0.2))

SPEC = {"every": [4, 10]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of three ways to save, at two intervals; a save of one of them is wrong. Read only."""
    directory = tmp_path_factory.mktemp("loops") / "tiny"
    for number in (1, 2, 3):
        jobs = [
            LoopSimulation(way="sync", costs=SYNC, number=number, seed=number, spec=SPEC),
            LoopSimulation(way="none", number=number, seed=10 + number, spec=SPEC),
            LoopSimulation(
                costs=BEHIND, number=number, seed=20 + number, reasons={4: "loaded state differs: a"}, spec=SPEC
            ),
        ]
        for simulation in jobs:
            simulation.write(directory)
    return directory


def tables_of(study: Path) -> dict[str, Table]:
    """The tables of a study's only setting, by name."""
    [comparison] = compare(load_results([study]))
    return {table.name: table for table in loop_tables(comparison)}


def test_lost_time_as_text(study: Path, show: Show, file_regression: FileRegressionFixture) -> None:
    """All tables of a study with a loop fit 80 columns; those of saves and loads, which it hasn't, are left out."""
    text = show(study, "text", 80)  # type: ignore[call-arg]
    assert max(map(len, text.splitlines())) <= 80
    assert "Summary" not in text
    file_regression.check(text)


@pytest.mark.parametrize("style", ["markdown", "latex", "csv", "html"])
def test_other_formats_have_the_tables(style: str, study: Path, show: Show) -> None:
    """Every format shows lost time with its verdicts, and its parts."""
    text = show(study, style)  # type: ignore[arg-type]
    for words in ("Lost time", "Parts of the lost time", "Other costs of saves", "not significant", "interference"):
        assert words in text


def test_csv_has_every_part_of_a_statistic(study: Path, show: Show) -> None:
    """A program reads estimate, interval, p and verdict from columns."""
    header = next(line for line in show(study, "csv").splitlines() if "lost per save [s]" in line)
    wanted = {f"lost per save [s]{suffix}" for suffix in ("", " low", " high", " p", " verdict")}
    assert wanted <= set(header.split(","))


def test_methods_are_set_against_the_synchronous_way(study: Path) -> None:
    """At every interval: the thread loses less than `torch_save+way=sync`, and so does saving nothing."""
    table = tables_of(study)["lost"]
    number = table.headings.index("more than torch_save+way=sync [s]")
    cells = {(shown(row[0]), shown(row[1])): row[number] for row in table.rows}
    verdicts = {key: cell.verdict for key, cell in cells.items() if isinstance(cell, Judged)}
    assert verdicts["torch_save+way=none", "10"] == "less"
    assert verdicts["torch_save+way=thread [1] [2] [3]", "10"] == "less"
    assert verdicts["torch_save+way=sync", "10"] == ""


def test_a_merged_file_has_the_same_tables(study: Path, show: Show, tmp_path: Path) -> None:
    """Blocks, steps and saves travel with the merged file."""
    merged = tmp_path / "merged.h5"
    app(["merge", str(study), "-o", str(merged)], result_action="return_value")
    assert show(merged, "csv") == show(study, "csv")


@pytest.mark.parametrize(("slow", "by"), [("slow_rank", "call"), ("writer", "writing")])
def test_a_straggler_is_in_a_table(slow: str, by: str, tmp_path: Path) -> None:
    """Where one of two ranks saves slowly, the table of ranks names it, its host, and by what it was slow."""
    LoopSimulation(way="sync", costs=replace(SYNC, **{slow: 1}), nodes=2).write(tmp_path / "tiny")
    [row] = tables_of(tmp_path / "tiny")["lost_ranks"].rows
    assert [shown(cell) for cell in row[:-1]] == ["torch_save+way=sync", "15", "1 (15 of 15 saves)", "node1", by]


def test_what_the_recorder_takes_is_a_note(study: Path, tmp_path: Path) -> None:
    """The most of all jobs; logs without it have no such note."""

    def recorded(log: TimingLog) -> None:
        log.provenance["loop_recorder_s"] = 12e-6 * log.header.round

    for number in (1, 2):
        LoopSimulation(way="sync", costs=SYNC, number=number).write(tmp_path / "tiny", recorded)
    assert "recording a step took at most 24 µs of it, in every block" in tables_of(tmp_path / "tiny")["lost"].notes
    assert not any("recording a step" in note for note in tables_of(study)["lost"].notes)


def test_one_rank_has_no_table_of_ranks(study: Path) -> None:
    """There is nobody to wait for."""
    assert list(tables_of(study)) == ["lost", "lost_parts", "lost_beside"]


def test_a_method_without_a_block_is_a_row(show: Show, tmp_path: Path) -> None:
    """A method that failed before its first block stays in the table, with why."""
    study = LoopSimulation(way="sync", costs=SYNC, spec=SPEC).write(tmp_path / "tiny")

    def failed(log: TimingLog) -> None:
        for rows in (log.blocks, log.steps, log.saves):
            rows[:] = []
        log.header.status, log.header.error = "failed", "no space"

    LoopSimulation(label="safetensors_sync", costs=SYNC, spec=SPEC).write(study, failed)
    assert "failed: no space" in show(study, "markdown")
    rows = {shown(row[0]).split(" [")[0]: row for row in tables_of(study)["lost"].rows}
    assert {shown(cell) for cell in rows["safetensors_sync+way=thread"][1:]} == {"-"}


def test_unproven_durability_is_in_heading_and_note(tmp_path: Path) -> None:
    """Where nobody can see whether a commit is durable, the latency's heading says so, and a caveat why."""

    def unproven(log: TimingLog) -> None:
        log.storage |= {"durability_proof": "servers hold it in memory", "fsync_guarantee": "unknown"}

    table = tables_of(LoopSimulation(way="sync", costs=SYNC).write(tmp_path / "tiny", unproven))["lost"]
    assert "latency, durability unproven [s]" in table.headings
    assert any("servers hold it in memory" in note for note in table.notes)


def test_two_results_are_compared(study: Path, tmp_path: Path) -> None:
    """`compare` sets B's lost time against A's at the same interval, with a verdict; the loop is a circumstance."""
    for number in (1, 2, 3):
        LoopSimulation(
            costs=Costs(snapshot_s=2.0, latency_s=2.0), number=number, seed=30 + number, spec={"every": [10, 20]}
        ).write(tmp_path / "after")
    tables = {table.name: table for table in contrast(load_results([study]), load_results([tmp_path / "after"]))}
    assert list(tables) == ["lost", "circumstances"]
    [row] = tables["lost"].rows
    assert [shown(row[0]), shown(row[2])] == ["torch_save+way=thread [1] [2] [3] [4]", "10"]
    assert isinstance(row[5], Judged)
    assert row[5].verdict == "more"
    assert any("different training loops" in note for note in tables["lost"].footnotes)
    assert "training loop" in {shown(row[0]) for row in tables["circumstances"].rows}
