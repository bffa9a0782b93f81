"""`python -m analysis faults`: what methods survive, in all formats, whatever a study's file holds."""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pytest_regressions.file_regression import FileRegressionFixture
from rich.cells import cell_len
from rich.text import Text

import analysis
from analysis.tables.faults import faults_table
from analysis.tables.render import Format, render
from analysis.tables.table import Marked, Outcomes, shown
from jobs.faults.outcomes import ALONE, BIT_ROT, FAULTS, KILL, POWER_CUT, RIGHT, USES, Cell, FaultLog
from support.command_lines import run_module
from support.fault_logs import fault_log, write_fault_log

REPOSITORY = Path(analysis.__file__).parents[1]

EXTENSIONS = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex", "html": ".html"}

STYLES = pytest.mark.parametrize("style", EXTENSIONS)

HOSTILE = (
    "<script>alert(1)</script> &lt;b&gt; a_b `code` ``two`` [link](javascript:x) ![x](http://x) |cell| "
    "line\nnext\r\n# heading\n\n\x1b[31mred\x1b[0m \u202ereversed \\input{x} $y$ % ~ ="
)


def as_text(log: FaultLog, monkeypatch: pytest.MonkeyPatch, columns: int = 80, *, color: bool = False) -> str:
    """The table on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    return render([faults_table(log)], "text", color=color)


def commands(shown_text: str) -> list[list[str]]:
    """The commands of a text, as a shell reads them."""
    lines = shown_text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("  python -m jobs")]


@STYLES
def test_faults_in_every_format(style: str, tmp_path: Path, file_regression: FileRegressionFixture) -> None:
    """Every verdict, a fault that was skipped, one that was not tried, and the smallest cases; text in 80 columns."""
    write_fault_log(fault_log(), tmp_path)

    ended = run_module("analysis", "faults", str(tmp_path), "--format", style, columns=80)

    assert (ended.returncode, ended.stderr) == (0, "")
    file_regression.check(ended.stdout, extension=EXTENSIONS[style])


def test_a_cell_has_the_worst_verdict_of_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """One silent case of a thousand decides; the number of cases stands beside it, and all counts stand below."""
    cells = (
        Cell("a", ALONE, POWER_CUT, 900, 99, 1, "cut"),
        Cell("b", ALONE, POWER_CUT, 900, 99, 0, "cut"),
        Cell("c", ALONE, POWER_CUT, 999),
    )
    drawn = as_text(fault_log(*cells), monkeypatch, 200)

    rows = [line.strip("│ ").split() for line in drawn.splitlines() if line.startswith("│")]
    assert [row[-4:] for row in rows] == [
        ["silent", "1", "of", "1000"],
        ["detected", "99", "of", "999"],
        ["alone", "│", "right", "999"],
    ]
    assert "a, alone, power cut: 1 silent, 99 detected, 900 right\n" in drawn


def test_every_cell_that_is_not_right_has_a_case_and_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones come first; a shell reads the command of each as the log gives it, though it takes two lines."""
    log = fault_log()
    drawn = as_text(log, monkeypatch)

    bad = [cell for cell in log.cells if cell.verdict not in {RIGHT, ""}]
    expected = sorted(bad, key=lambda cell: cell.verdict != "silent")
    assert commands(drawn) == [shlex.split(log.command_of(cell)) for cell in expected]
    words = " ".join(drawn.split())
    assert [cell.case for cell in expected if cell.case not in words] == []
    assert " \\\n" in drawn


def test_skipped_faults_have_the_reason_as_a_footnote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells that were skipped for one reason share its number; a cell that the file lacks was not tried."""
    cells = (
        Cell("a", ALONE, POWER_CUT, skipped="no strace"),
        Cell("a", ALONE, KILL, skipped="no strace"),
        Cell("a", ALONE, BIT_ROT, 1),
        Cell("b", ALONE, KILL),
    )
    drawn = as_text(fault_log(*cells), monkeypatch, 200).splitlines()

    first, second = (line.strip("│ ").split() for line in drawn if line.startswith("│"))
    assert first == ["a", "│", "alone", "│", "-", "[1]", "│", "-", "[1]", "│", "right", "1"]
    assert second == ["b", "│", "alone", "│", "-", "[2]", "│", "-", "[2]", "│", "-", "[2]"]
    assert {"[1] no strace", "[2] not tried"} <= set(drawn)


@given(
    st.lists(
        st.builds(
            Cell,
            st.sampled_from(["torch_save", "b+x=1"]),
            st.sampled_from(USES),
            st.sampled_from(FAULTS),
            *[st.integers(0, 9999)] * 3,
        ),
        unique_by=lambda cell: (cell.method, cell.use, cell.fault),
    )
)
def test_every_cell_stands_in_its_row_and_column(cells: list[Cell]) -> None:
    """In whatever order the file has them; methods stay in that order, and columns and uses in the usual one."""
    table = faults_table(fault_log() if not cells else fault_log(*cells))
    columns = [heading.replace(" ", "-") for heading in table.headings[2:]]

    placed = {
        (row[0], row[1], column): cell.of
        for row in table.rows
        for column, cell in zip(columns, row[2:], strict=True)
        if isinstance(cell, Outcomes)
    }
    assert [cell for cell in cells if placed[cell.method, cell.use, cell.fault] != cell] == []
    assert columns == [fault for fault in FAULTS if fault in columns]
    assert list(dict.fromkeys(row[0] for row in table.rows))[: 1 + (not cells)] == (
        [cells[0].method] if cells else ["torch_save", "safetensors_tuned+checksum=False"]
    )
    if cells:
        assert len(table.examples) == sum(cell.verdict in {"silent", "detected"} for cell in cells)


@pytest.mark.parametrize(
    "method",
    ["torch_save", "tensorstore_tuned+chunk_mib=64+compression=blosc_zstd_5", "日本" * 40],
    ids=["short", "long", "without breaks"],
)
def test_it_fits_80_columns_in_one_block(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With long names, five-digit counts and every fault: lines are wrapped, and no column moves to a second table."""
    cells = [Cell(method, use, fault, 12345, 1234, 12, "x " * 99) for use in USES for fault in FAULTS]
    drawn = as_text(fault_log(*cells), monkeypatch)

    boxed = [line for line in drawn.splitlines() if line[:1] in set("┏┃┡│├└")]
    assert [line for line in boxed if cell_len(line) > 80] == []
    assert drawn.count("┏") == 1
    assert drawn.count("12 of") == drawn.count("13591") == 8
    if method.isascii():
        assert [line for line in drawn.splitlines() if cell_len(line) > 80] == []


def test_color_adds_nothing_but_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent is red, detected yellow, right green; without color the words are the same."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, colored = (as_text(fault_log(), monkeypatch, color=color) for color in (False, True))

    assert Text.from_ansi(colored).plain.splitlines() == plain.splitlines()
    assert "\x1b" not in plain
    for code, word in ((31, "silent"), (33, "detected"), (32, "right")):
        assert f"\x1b[{code}m{word}" in colored


@pytest.mark.parametrize(("environment", "is_colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_color(environment: dict[str, str], is_colored: bool, tmp_path: Path) -> None:
    """Unless its user wants none."""
    write_fault_log(fault_log(), tmp_path)
    ours, theirs = pty.openpty()
    known = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    subprocess.run(
        [sys.executable, "-m", "analysis", "faults", str(tmp_path)],
        stdout=theirs,
        check=True,
        env=known | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(REPOSITORY)} | environment,
    )
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)

    assert ("\x1b[31msilent" in drawn) == is_colored
    assert "silent" in drawn


def hostile_log() -> FaultLog:
    """Something hostile wherever a file of faults holds a text."""
    cells = (
        Cell(f"m{HOSTILE}", HOSTILE, POWER_CUT, 1, 2, 3, HOSTILE),
        Cell(f"m{HOSTILE}", HOSTILE, HOSTILE, skipped=f"={HOSTILE}"),
    )
    return fault_log(
        *cells,
        study=HOSTILE,
        target=HOSTILE,
        filesystem=HOSTILE,
        command=f"python {HOSTILE}",
        versions={HOSTILE: HOSTILE},
    )


@STYLES
def test_texts_of_a_file_are_harmless(style: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup, control characters and newlines stay text in cells, titles, notes, cases and commands."""
    monkeypatch.setenv("COLUMNS", "1000")
    drawn = render([faults_table(hostile_log())], style)

    assert not set(drawn) & {"\x1b", "\u202e", "\r"}
    if style == "markdown":
        tokens = MarkdownIt("commonmark").enable("table").parse(drawn)
        inline = [child for token in tokens for child in token.children or ()]
        kinds = {token.type for token in [*tokens, *inline]}
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "heading_open", "fence", "code_block"}
        [code] = [child.content for child in inline if child.type == "code_inline"]
        assert code.startswith("python <script>alert(1)</script> &lt;b&gt; a_b `code` ``two`` [link](javascript:x)")
        assert sum(token.type == "tr_open" for token in tokens) == 2
    elif style == "html":
        root = ET.fromstring(drawn)
        assert not {"script", "b", "img"} & {element.tag for element in root.iter()}
        assert "<script>alert(1)</script> &lt;b&gt; a_b" in "".join(root.itertext())
    elif style == "latex":
        assert not re.search(r"(?<!\\)[_#$^~&](?! )", drawn.replace("\\#", ""))
        assert "\\input" not in drawn
    elif style == "csv":
        header, row = list(csv.reader(io.StringIO(drawn)))[:2]
        assert len(header) == len(row)
        assert [value for name, value in zip(header, row, strict=True) if name.endswith("skipped")][1][:2] == "'="
    else:
        assert "line next # heading [31mred[0m reversed" in drawn


def test_csv_has_every_count_in_a_column() -> None:
    """For programs: the verdict, the three counts, and why nothing was tried."""
    drawn = render([faults_table(fault_log())], "csv")
    first, _, third = csv.DictReader(line for line in drawn.splitlines() if line[:1] != "#")

    names = ("", " silent", " detected", " right", " skipped")
    assert [first[f"power cut{name}"] for name in names] == ["silent", "3", "31", "378", ""]
    assert [third[f"failed call{name}"] for name in names] == ["", "0", "0", "0", "strace is not installed"]
    assert (third["method"], third["use"]) == ("safetensors_tuned+checksum=False", "alone")


def test_markdown_has_no_heading() -> None:
    """It can be pasted into a page whose headings are its own."""
    drawn = render([faults_table(fault_log())], "markdown")

    assert drawn.startswith("Faults: durable on disk (ext4), a state of 101,632 bytes, seed 7\n\n| method")
    assert [line for line in drawn.splitlines() if line.startswith("#")] == []


def test_outcomes_are_no_marked_texts() -> None:
    """A skipped cell is shown as a missing value with its footnote is."""
    assert shown(Outcomes(Cell("a", ALONE, KILL), (2,))) == shown(Marked("-", (2,))) == "- [2]"
