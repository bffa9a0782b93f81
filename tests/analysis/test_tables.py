"""How the tables look, in each format, and that nothing in a log can spoil them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from support.studies import MakeStudy, Show, StudyOnDisk

EXTENSIONS = {"text": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex", "html": ".html"}

STYLES = pytest.mark.parametrize("style", EXTENSIONS)

# Each does something in one of the formats: rich markup, a table's cell, HTML, a line, a terminal's colour,
# the direction of writing, a link.
HTML_TAGS = {
    "figure", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "sup", "a", "figcaption", "ol", "ul", "li",
    "wbr",
}  # fmt: skip

HOSTILE = (
    "[bold]loud[/bold] [s] |cell| <script>alert(1)</script> &lt;b&gt; line\nnext\r\n\x1b[31mred\x1b[0m \u202ereversed "
    'back\\slash "quoted", [link](javascript:x) ![picture](http://x) `code` # end'
)


@STYLES
def test_tables_of_three_methods(
    style: str, three_methods: StudyOnDisk, show: Show, file_regression: FileRegressionFixture
) -> None:
    """The original comparison's three tables from three complete jobs; the numbers are asserted in test_comparison."""
    file_regression.check(show(three_methods.root, style), extension=EXTENSIONS[style])


@STYLES
def test_tables_of_a_study_where_much_went_wrong(
    style: str, make_study: MakeStudy, show: Show, file_regression: FileRegressionFixture
) -> None:
    """Every defect has a number beside its method and a note below the table."""
    study = make_study(rounds=2)
    study.log(
        "torch_save",
        number=1,
        save=[99, 2, 3, 4],
        cold=[9, 1, 1, 2],
        warm=[9, 1, 1, 1],
        gib=[1, 1, 1, 1],
        warmups=1,
        invalid={(0, "warm"): "loaded state differs: w", (2, "cold"): "loaded state differs: w[3]"},
    )
    study.log("torch_save", number=2, save=[5], cold=[1], status="running")
    study.log(
        "tensorstore_basic",
        number=1,
        save=[60, 70],
        cold=[20, 30],
        warm=[10, 11],
        gib=[1, 1],
        unproven={0: 0.25, 1: 0.5},
    )
    study.log("tensorstore_basic", number=2, status="failed", error="OSError: [Errno 28] No space left", state={})
    study.log("tensorstore_t5x", number=2, status="interrupted", error="the cluster ended it", state={})

    file_regression.check(show(study.root, style), extension=EXTENSIONS[style])


def test_text_headings_name_their_units(three_methods: StudyOnDisk, show: Show) -> None:
    """A unit in brackets is not taken for markup."""
    [headings] = [line for line in show(three_methods.root, "text").splitlines() if "best for" in line]

    assert re.split(r"\s*┃\s*", headings.strip("┃ ")) == [
        "method",
        "save [s]",
        "load, cold from the device [s]",
        "load, warm [s]",
        "size [GiB]",
        "best for",
    ]


def test_text_loses_no_digit_of_wide_tables(make_study: MakeStudy, show: Show) -> None:
    """Long labels, many marks and long numbers make a table wide; they don't cut its numbers."""
    raw = {"name": "tensorstore_basic", "compressor": "none"}
    study = make_study(strategies=["torch_save", raw], rounds=9)
    large = 123456789.25
    study.log(
        "tensorstore_basic+compressor=none",
        save=[large, large],
        cold=[large, large],
        warm=[large, large],
        gib=[large, large],
        invalid=dict.fromkeys([(1, "save"), (1, "cold"), (1, "warm")], "wrong"),
    )
    shown = show(study.root, "text")

    assert shown.count("123456789.25, n = 1, 1 invalid") == 3
    assert shown.split("Relative to")[0].count("│ 123456789.25 │") == 1
    assert "…" not in shown


@STYLES
def test_texts_from_a_log_are_harmless(style: str, make_study: MakeStudy, show: Show) -> None:
    """Markup, HTML, control characters, newlines and separators stay text, in cells, titles and notes alike."""
    study = make_study(strategies=["torch_save"])
    study.log(
        "torch_save",
        save=[2, 4],
        invalid={(1, "save"): HOSTILE},
        status="failed",
        error=HOSTILE,
        label=HOSTILE,
        target=HOSTILE,
        strategy_facts='{"best_for": "<b>[red]|x|"}',
    )
    shown = show(study.root, style)
    lines = shown.splitlines()

    assert not set(shown) & {"\x1b", "\u202e", "\r"}
    if style == "text":
        assert "[bold]loud[/bold] [s] |cell| <script>alert(1)</script> &lt;b&gt; line next" in shown
        assert sum(line.startswith("[1] [bold]loud[/bold]") for line in lines) == 1
        [row] = [line for line in lines if "2.00, n = 1, 1 invalid" in line]
        assert row.count("│") == 7
        assert row.startswith("│ [bold]loud[/bold] [s] |cell| <script>")
        assert "│ <b>[red]|x|" in row
    elif style == "markdown":
        assert not re.search(r"<(?! )", shown)
        assert not re.search(r"(?<!\\)`|\]\(", shown)
        table = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
        assert {len(cells) for cells in table[:3]} == {15}
        assert {len(cells) for cells in table[3:6]} == {8}
        assert sum(line.startswith("- [1] [bold]loud[/bold] [s] \\|cell\\| &lt;script>") for line in lines) == 1
    elif style == "latex":
        assert not re.search(r"(?<!\\)[_#$^~&](?! )", shown.replace("\\#", ""))
        assert r"\textbackslash{}slash" in shown
        assert r"{[}bold{]}loud" in shown
        assert len([line for line in lines if line.startswith(r"\begin{table}")]) == 7
    elif style == "html":
        assert set(re.findall(r"<(\w+)", shown)) <= HTML_TAGS
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;lt;b&amp;gt; line next" in shown
    else:
        start = next(number for number, line in enumerate(lines) if line.startswith("table,title,method"))
        header, row = csv.reader(lines[start : start + 2])
        assert len(header) == len(row)
        assert row[header.index("method")].startswith("[bold]loud[/bold] [s] |cell| <script>alert(1)</script>")
        assert row[header.index("best for")] == "<b>[red]|x|"
        assert all(
            not line
            or line.partition(",")[0] in {"table", "storage", "summary", "relative", "phases", "bandwidth", "cost"}
            for line in lines
            if line[:1] != "#"
        )


@STYLES
def test_very_long_texts_do_not_break_a_table(style: str, make_study: MakeStudy, show: Show) -> None:
    """Ten thousand characters in a label, an error or a fact leave the numbers where they are, and are all there."""
    study = make_study(strategies=["torch_save"])
    long = "x" * 10_000
    study.log(
        "torch_save",
        save=[2, 4, 6],
        status="failed",
        error=f"error {long}",
        label=long,
        strategy_facts=f'{{"best_for": "{long}"}}',
        state={
            "model": long,
            "tensors": 1,
            "parameters": 1,
            "state_bytes": 1,
            "dtypes": "float16",
            "digest": "0" * 64,
        },
    )
    shown = show(study.root, style)

    assert f"error {long}" in " ".join(shown.split())  # a long word begins a line of a text's notes
    numbers = r"\num{4.00} {[}\num{2.00}, \num{6.00}{]}, n = \num{3}"
    if style == "csv":
        assert ",4.0,2.0,6.0,2.0,6.0,3,0," in shown
    else:
        assert shown.count(numbers if style == "latex" else "4.00 [2.00, 6.00], n = 3") == 1
    if style == "text":
        boxed = [line for line in shown.splitlines() if line[:1] in set("┏┃┡│└")]
        assert max(map(len, boxed)) < 300  # the widest, of costs, has fifteen columns
        assert shown.split("Relative")[0].count("x") > 4 * len(long)  # label, fact, error, and the state in words


def test_csv_names_methods_alike_in_every_table(make_study: MakeStudy, show: Show) -> None:
    """Marks stand in a column of their own, so that a machine can join the tables by method."""
    study = make_study()
    study.log("torch_save", save=[1])
    study.log("tensorstore_basic", save=[1], status="failed", error="why")

    blocks = show(study.root, "csv").split("\n\n")
    summary, relative = (
        list(csv.DictReader(line for line in block.splitlines() if line[:1] != "#")) for block in blocks[1:3]
    )

    assert {row["method"]: row["notes"] for row in summary} == {
        "torch_save": "",
        "tensorstore_basic": "1",
        "tensorstore_t5x": "2",
    }
    assert [row["method"] for row in relative] == ["tensorstore_basic", "tensorstore_t5x"]
    assert "\n# [1] tensorstore_basic: r01-tensorstore_basic-disk-1x1: failed: why\n" in blocks[1]


def test_a_path_may_have_any_name(weird_path: Path, make_study: MakeStudy, show: Show) -> None:
    """Results are read wherever they lie, and an unreadable log's path is told on one line."""
    study = make_study(below=weird_path)
    study.log("torch_save", save=[4])
    study.log("tensorstore_basic", save=[4]).write_bytes(b"")

    lines = show(study.root, "text").splitlines()

    assert any("4.00, n = 1" in line for line in lines)
    [note] = [line for line in lines if line.startswith("[1] tensorstore_basic")]
    assert "unreadable" in note
    assert " ".join(str(weird_path).split()) in note
