"""The tables as text fit the terminal: blocks of columns that repeat the row labels, and no number less."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from rich.cells import cell_len

from analysis import __main__ as commands
from analysis.measures.statistics import Interval
from analysis.tables.render import render
from analysis.tables.table import Estimate, Number, Table
from support.studies import Ranked

LONG = "tensorstore_tuned+chunk_mib=64+compression=blosc_zstd_5+concurrency=128+direct_io=True"


@pytest.fixture
def long_labels(ranked: Ranked) -> Path:
    """A study with a long method label beside torch_save, on two targets, at two scales of several ranks."""
    for target in ("shared_filesystem_of_the_site", "nvme"):
        for nodes in (1, 2):
            for label, seconds in (("torch_save", 2.0), (LONG, 1234.5)):
                for number in (1, 2):
                    trial = [seconds + number, seconds][:nodes] if nodes > 1 else [seconds + number]
                    study = ranked(
                        label=label, target=target, nodes=nodes, number=number, save=[trial] * 3, load=[trial] * 3,
                        ceiling=[1.0] * nodes,
                    )  # fmt: skip
    return study


COMMANDS: dict[str, Callable[[Path], int]] = {
    "table": commands.table,
    "compare": lambda study: commands.compare_two(study, study),
    "advise": commands.advise_,
    "project": lambda study: commands.project_(study, parameters=405e9, nodes=64),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_line_is_wider_than_the_terminal(
    command: Callable[[Path], int],
    long_labels: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At 80 columns, which are used where the output is no terminal, every line fits, and every number is there."""
    numbers = []
    for columns in ("1000", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        command(long_labels)
        shown = capsys.readouterr().out
        numbers.append(sorted(set(re.findall(r"\d+\.\d+", shown))))

    assert [line for line in shown.splitlines() if cell_len(line) > 80] == []
    assert numbers[0] == numbers[1]


def test_blocks_repeat_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block has every row's label, on lines that begin with its options, and no cell is broken."""
    monkeypatch.setenv("COLUMNS", "60")
    cells = [Estimate(Interval(1.5, 1.25, 1.75)), Number(2), Number(3), Number(4)]
    headings = ("method", "save of the state [s]", "a", "quite long heading", "d" * 20)
    table = Table("t", "A title", headings, (("a_strategy+option=1+another=2", *cells),), ())

    shown = render([table], "text")

    assert shown.count("a_strategy") == shown.count("+another=2") > 1
    assert all(part in shown for part in ("1.50 [1.25, 1.75]", "2.00", "3.00", "4.00", "d" * 20))


def test_other_formats_have_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Markdown and CSV are the same on any terminal."""
    table = Table("t", "A title", ("method", *"abcdefgh"), ((LONG, *[Number(10.0**12)] * 8),), (LONG,))
    written = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        written.append([render([table], style) for style in ("markdown", "csv", "html", "latex")])

    assert written[0] == written[1]


@pytest.mark.parametrize("columns", [30, 40, 50, 80])
def test_labels_are_not_broken_inside_words(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label breaks before `+`, or behind punctuation where an option is longer than a line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    numbers = [Number(10.0**12)] * 4
    table = Table("t", "A title", ("method", *"abcd"), ((LONG, *numbers), ("torch_save", *numbers)), ())

    shown = render([table], "text")

    cells = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    lines = cells[: cells.index("torch_save")]
    assert "".join(lines) == LONG
    assert [line for line, after in pairwise(lines) if not (line[-1] in "_=" or after[0] == "+")] == []


def test_headings_are_not_broken_inside_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heading that is wider than the terminal, like the name of a target, breaks behind punctuation."""
    monkeypatch.setenv("COLUMNS", "40")
    target = "shared_filesystem/of_the_department-of-physics"
    table = Table("t", "A title", ("method", target), (("torch_save", Number(1)),), ())

    shown = render([table], "text")

    cells = [line.split("┃")[2].strip() for line in shown.splitlines() if line.startswith("┃")]
    assert "".join(cells) == target
    assert all(line[-1] in "_/-" for line in cells[:-1])


def test_a_table_without_rows_has_no_frame() -> None:
    """The title and the note that says why there are none are all that is shown."""
    empty = Table("empty", "Nothing to show", ("method", "save"), (), ("the study has no torch_save",))

    assert "Nothing to show\nthe study has no torch_save\n" == render([empty], "text")
