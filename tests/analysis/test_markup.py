"""Tables for pages and papers: LaTeX that compiles, HTML that can be read aloud, both unspoilt by what a log says."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.measures.statistics import Interval
from analysis.measures.trials import NO_TRIALS, Trials
from analysis.tables.html import html
from analysis.tables.latex import LATEX_PACKAGES, in_latex, latex
from analysis.tables.table import Change, Example, Marked, Number, Part, Ratio, Share, Table

NAN = float("nan")

HOSTILE = r"\input{/etc/passwd} $x_1^2$ & 50 % #1 ~ <b>|`\"[opt] -- ✓ 日本 Ünïcode ß ½ ① " + "\u202e\x1b\n"

EVERYTHING = Table(
    "everything",
    f"Every kind of cell {HOSTILE}",
    ("method", "save [s]", "share", "part", "number", "change", "ratio", "note"),
    (
        (
            Marked("torch_save", (1, 2)),
            Trials((4.0, 2.0, 6.0), ("job",) * 3, invalid=1),
            Share(0.25),
            Part(0.5),
            Number(12345.678, 3),
            Change(Interval(-0.1, -0.2, 0.1), "not significant", 0.2),
            Ratio(Interval(2.0, 1.9, 2.1), "slower", 0.01),
            HOSTILE,
        ),
        (
            HOSTILE,
            NO_TRIALS,
            Share(NAN),
            Part(NAN),
            Number(NAN),
            Change(Interval(NAN, NAN, NAN), "", NAN),
            Ratio(Interval(-2.0, NAN, NAN), "too few jobs to tell", NAN),
            "",
        ),
    ),
    (HOSTILE, "a note"),
    ("the first", HOSTILE),
    examples=(Example(HOSTILE, HOSTILE, HOSTILE), Example("a case", "", "python -m jobs faults --method a")),
)

EMPTY = Table("empty", "Nothing to show", ("method", "save"), (), ("the study has no torch_save",))


@pytest.fixture
def pdflatex() -> str:
    """The compiler, or a skip that continuous integration does not take for a pass."""
    found = shutil.which("pdflatex")
    if found is None:
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail("pdflatex is not installed, and CKPT_REQUIRE_ALL is set")
        pytest.skip("needs pdflatex (Debian: texlive-latex-base, texlive-latex-recommended, texlive-science)")
    return found


def compiled(pdflatex: str, body: str, directory: Path) -> str:
    """What pdflatex says of a document with this body; it has to make a PDF without an error."""
    packages = "".join(f"\\usepackage{{{name}}}\n" for name in LATEX_PACKAGES)
    source = f"\\documentclass{{article}}\n{packages}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (directory / "paper.tex").write_text(source)
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (directory / "paper.pdf").stat().st_size > 1000
    return done.stdout


def test_latex_compiles(pdflatex: str, tmp_path: Path) -> None:
    """Every kind of cell, texts that want to be commands, and an empty table; none is wider than the line."""
    said = compiled(pdflatex, latex(EVERYTHING) + latex(EMPTY), tmp_path)

    assert "Overfull" not in said


def test_the_tables_of_a_study_compile(pdflatex: str, tmp_path: Path) -> None:
    """Those that the golden files hold, as they are; wide ones are shrunk to the line."""
    whole = [Path(__file__).parent / name for name in ("test_tables", "test_faults")]
    for number, golden in enumerate(sorted(path for folder in whole for path in folder.glob("*.tex"))):
        directory = tmp_path / str(number)
        directory.mkdir()

        said = compiled(pdflatex, golden.read_text(), directory)

        assert "Overfull" not in said


def test_every_latin_letter_compiles(pdflatex: str, tmp_path: Path) -> None:
    """What is not in LaTeX's standard fonts is named instead."""
    characters = map(chr, [*range(32, 127), *range(160, 0x250), *range(0x1E00, 0x2070)])

    compiled(pdflatex, in_latex(" ".join(characters)), tmp_path)


@given(st.text())
def test_latex_texts_have_no_commands_of_their_own(text: str) -> None:
    """Whatever the text: each backslash begins a command of ours, and braces close."""
    found = in_latex(text)
    bare = found.replace(r"\{", "").replace(r"\}", "")

    assert bare.count("{") == bare.count("}")
    for special in "#$%&_":
        assert found.count(special) == found.count(f"\\{special}")
    assert "\n" not in found


def test_latex_sets_numbers_as_numbers() -> None:
    r"""Plain numbers stand in S columns as wide as they are, all others in \num."""
    written = latex(EVERYTHING)

    assert r"\begin{tabular}{lrrrS[table-format=5.3]rrl}" in written
    assert r"& \num{+25.0} \% &" in written
    assert r"& 12345.678 &" in written
    assert r"\num{-10.0} \% {[}\num{-20.0}, \num{+10.0}{]}, not significant" in written


def test_html_is_well_formed_and_names_its_cells() -> None:
    """A caption, headings with a scope, and footnotes that are linked: a page can be read aloud."""
    root = ET.fromstring(html(EVERYTHING, "table-7"))
    table = root.find(".//table")
    assert table is not None

    assert str(table.findtext("caption")).startswith("Every kind of cell")
    assert {each.get("scope") for each in table.iterfind("thead//th")} == {"col"}
    assert [each.get("scope") for each in table.iterfind("tbody//th")] == ["row", "row"]
    links = [each.get("href") for each in table.iterfind(".//a")]
    assert links == ["#table-7-1", "#table-7-2"]
    assert [each.get("id") for each in root.iterfind(".//ol/li")] == ["table-7-1", "table-7-2"]
    assert root.find(".//td/b") is None


def test_names_of_methods_break_before_options() -> None:
    """In cells and headings, and in no other text with a plus; what a name holds is text, and stays the same."""
    name = "torch_save+crc=False+<b>=1+level=a+b"
    row = (name, Marked("m+x=1", (1,)), "a+b", Share(0.25))
    written = html(Table("t", "t", ("method", name, "c++", "+x=1"), (row,), (), ("a footnote",)), "t")
    root = ET.fromstring(written)

    cells = [*root.iterfind(".//thead//th"), *root.iterfind(".//tbody/tr/*")]
    assert ["".join(each.itertext()) for each in cells] == [
        "method",
        name,
        "c++",
        "+x=1",
        name,
        "m+x=1 [1]",
        "a+b",
        "+25.0 %",
    ]
    assert [len(each.findall("wbr")) for each in cells] == [0, 2, 0, 0, 2, 1, 0, 0]
    assert "torch_save<wbr/>+crc=False+&lt;b&gt;=1<wbr/>+level=a+b" in written


def test_html_without_rows_says_why() -> None:
    """An empty table is its note."""
    root = ET.fromstring(html(EMPTY, "t"))

    assert [each.text for each in root.iterfind(".//li")] == ["the study has no torch_save"]
