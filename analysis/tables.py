"""The document's comparison tables, defined once and rendered as text, Markdown or CSV."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from analysis.comparison import REFERENCE, Comparison, Method, Statistic, change, improvement
from analysis.noise import in_short

Format = Literal["text", "markdown", "csv"]

BASIC, T5X = "tensorstore_basic", "tensorstore_t5x"

_TEXTS = {"", "method", "best for"}
"""The columns that hold words; all others hold numbers."""

_MARKDOWN = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\("), ("`", "\\`"))
"""What texts from logs must not do in Markdown: end a cell, be HTML, a link, a picture, or code."""


@dataclass(frozen=True, slots=True)
class Share:
    """A relative difference: 0.25 is shown as +25.0 %."""

    value: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a whole: 0.25 is shown as 25 %."""

    value: float


@dataclass(frozen=True, slots=True)
class Number:
    """A plain quantity, shown with so many decimals."""

    value: float
    decimals: int = 2


_HOW_MEASURED = (
    "medians over trials (smallest - largest, n = valid trials); a save lasts until it is committed (synced and "
    "renamed), a load until every byte is in memory; GiB = 2^30 bytes"
)

_WHAT_BANDWIDTH = (
    "bandwidth is the state's logical bytes over time, GB = 10^9 bytes, total over total; the ceiling is what the "
    "target itself did in the same jobs, before and after, with direct I/O where it allows that"
)

_WHAT_COST = (
    "load: cold where there are proven cold loads; memory is the peak above what was resident before, so a load's "
    "holds the state"
)

_COST_NOTES = (_WHAT_BANDWIDTH, _WHAT_COST)


@dataclass(frozen=True, slots=True)
class Marked:
    """A text, and the numbers of the notes that belong to it."""

    text: str
    notes: tuple[int, ...]


Cell = str | Marked | Statistic | Share | Part | Number


@dataclass(frozen=True, slots=True)
class Table:
    """A table before it has a format: headings carry the units."""

    name: str
    """A short name for files and CSV."""
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


def all_tables(comparison: Comparison) -> list[Table]:
    """The document's tables, and what the methods cost."""
    return [*document_tables(comparison), _cost(comparison)]


def document_tables(comparison: Comparison) -> list[Table]:
    """The three tables at the end of the document: summary, relative to PyTorch, T5X against basic."""
    return [_summary(comparison), _relative(comparison), _t5x_against_basic(comparison)]


def _where(comparison: Comparison) -> str:
    where = f"{comparison.study}, target {comparison.target}, {comparison.nodes}x{comparison.tasks_per_node}"
    return f"{where} ({comparison.apart})" if comparison.apart else where


def _summary(comparison: Comparison) -> Table:
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    # A column of its own, and only where it is needed: proven and unproven loads do not compare.
    unproven = any(method.load_unproven.count or method.load_unproven.invalid for method in comparison.methods)
    for method in comparison.methods:
        first = len(problems) + 1
        problems += [f"{method.label}: {problem}" for problem in method.problems]
        rows.append(
            (
                Marked(method.label, tuple(range(first, len(problems) + 1))),
                method.save,
                method.load_cold,
                *([method.load_unproven] if unproven else []),
                method.load_warm,
                Number(method.size_bytes / 2**30),
                method.best_for,
            )
        )
    cold = ("load, cold [s]", "load, not proven cold [s]") if unproven else ("load, cold [s]",)
    headings = ("method", "save [s]", *cold, "load, warm [s]", "size [GiB]", "best for")
    numbered = (f"[{number}] {problem}" for number, problem in enumerate(problems, 1))
    doubts = (f"beware: {line}" for line in in_short(comparison.doubts))
    notes = (f"state: {comparison.state}", _HOW_MEASURED, *numbered, *doubts)
    return Table("summary", f"Summary: {_where(comparison)}", headings, tuple(rows), notes)


def _relative(comparison: Comparison) -> Table:
    reference = comparison.method(REFERENCE)
    headings = ("method", "save", "load, cold", "load, warm", "size")
    title = f"Relative to PyTorch ({REFERENCE}): {_where(comparison)}"
    if reference is None:
        return Table("relative", title, headings, (), (f"the study has no {REFERENCE} to set the others against",))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method.label,
            *(Share(change(a, b)) for a, b in zip(_figures(method), _figures(reference), strict=True)),
        )
        for method in comparison.methods
        if method is not reference
    )
    return Table("relative", title, headings, rows, ("of medians; + is more time, or more bytes",))


def _t5x_against_basic(comparison: Comparison) -> Table:
    basic, t5x = comparison.method(BASIC), comparison.method(T5X)
    headings = ("", "save time saved", "cold load time saved", "warm load time saved", "size")
    title = f"T5X against basic TensorStore: {_where(comparison)}"
    if basic is None or t5x is None:
        absent = BASIC if basic is None else T5X
        return Table("t5x_against_basic", title, headings, (), (f"the study has no {absent}",))
    pairs = list(zip(_figures(t5x), _figures(basic), strict=True))
    row: tuple[Cell, ...] = ("T5X", *(Share(improvement(a, b)) for a, b in pairs[:3]), Share(change(*pairs[3])))
    return Table("t5x_against_basic", title, headings, (row,), ("of medians; + is time saved, or more bytes",))


def _cost(comparison: Comparison) -> Table:
    headings = (
        "method", "save [GB/s]", "save, of ceiling", "load [GB/s]", "load, of ceiling",
        "CPU, save [s]", "CPU, load [s]", "memory, save [MiB]", "memory, load [MiB]",
        "written / state", "files", "under 1 MiB",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method in comparison.methods:
        cost = method.cost
        rows.append(
            (
                method.label,
                Number(cost.save_gbps, 3),
                Part(cost.save_share),
                Number(cost.load_gbps, 3),
                Part(cost.load_share),
                Number(cost.save_cpu_s),
                Number(cost.load_cpu_s),
                Number(cost.save_extra_bytes / 2**20, 0),
                Number(cost.load_extra_bytes / 2**20, 0),
                Number(cost.written_share),
                Number(cost.file_count, 0),
                Part(cost.small_file_share),
            )
        )
    return Table(
        "cost", f"Bandwidth and cost: {_where(comparison)}", headings, tuple(rows), (_WHAT_BANDWIDTH, _WHAT_COST)
    )


def _figures(method: Method) -> tuple[float, float, float, float]:
    return method.save.median, method.load_cold.median, method.load_warm.median, method.size_bytes


def shown(cell: Cell) -> str:
    """A cell as people read it."""
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, Marked):
        return " ".join([printable(cell.text), *(f"[{number}]" for number in cell.notes)])
    if isinstance(cell, Statistic):
        return _shown_statistic(cell)
    if math.isnan(cell.value):
        return "-"
    if isinstance(cell, Number):
        return f"{cell.value:.{cell.decimals}f}"
    return (f"{cell.value:+.1%}" if isinstance(cell, Share) else f"{cell.value:.0%}").replace("%", " %")


def _shown_statistic(cell: Statistic) -> str:
    invalid = f", {cell.invalid} invalid" if cell.invalid else ""
    if not cell.count:
        return f"-{invalid}".removeprefix("-, ")
    return f"{cell.median:.2f} ({cell.smallest:.2f} - {cell.largest:.2f}, n = {cell.count}{invalid})"


def printable(text: str) -> str:
    """A text from a log on one line, without control characters."""
    joined = " ".join(text.split())
    return "".join(character for character in joined if unicodedata.category(character)[0] != "C")


def render(tables: Sequence[Table], style: Format) -> str:
    """All tables as one text."""
    if style == "csv":
        return "\n".join(_csv(table) for table in tables)
    if style == "markdown":
        return "\n\n".join(_markdown(table) for table in tables) + "\n"
    return "\n".join(_text(table) for table in tables)


def _text(table: Table) -> str:
    drawn = RichTable(title=Text(printable(table.title), style="bold"), title_justify="left", expand=False)
    for heading in table.headings:
        if heading in _TEXTS:
            drawn.add_column(Text(heading), overflow="fold", max_width=60)
        else:
            drawn.add_column(Text(heading), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(shown(cell)) for cell in row))
    buffer = io.StringIO()
    # Wide enough for every column: a table that is too wide would lose ends of its numbers.
    console = Console(file=buffer, width=1000, color_system=None)
    console.print(drawn)
    for note in table.notes:
        console.print(Text(printable(note)), soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _markdown(table: Table) -> str:
    def cell(text: str) -> str:
        for character, harmless in _MARKDOWN:
            text = text.replace(character, harmless)
        return text

    rows = [[cell(shown(each)) for each in row] for row in table.rows]
    align = ["left" if heading in _TEXTS else "right" for heading in table.headings]
    body = tabulate(
        rows,
        headers=table.headings,
        tablefmt="pipe",
        colalign=align if rows else None,
        disable_numparse=True,
    )
    notes = "\n".join(f"- {cell(printable(note))}" for note in table.notes)
    return f"### {cell(printable(table.title))}\n\n{body}\n\n{notes}"


def _csv(table: Table) -> str:
    """Numbers unrounded, a column for each part of a statistic, the table's name first: for machines."""
    records = []
    for row in table.rows:
        record: dict[str, str | float] = {"table": table.name, "title": printable(table.title)}
        for heading, cell in zip(table.headings, row, strict=True):
            key = heading or "method"
            if isinstance(cell, Marked):
                record |= {key: printable(cell.text), "notes": " ".join(map(str, cell.notes))}
            elif isinstance(cell, Statistic):
                record |= {
                    f"{key} median": cell.median,
                    f"{key} smallest": cell.smallest,
                    f"{key} largest": cell.largest,
                    f"{key} valid": cell.count,
                    f"{key} invalid": cell.invalid,
                }
            else:
                record[key] = printable(cell) if isinstance(cell, str) else cell.value
        records.append(record)
    notes = "".join(f"# {printable(note)}\n" for note in table.notes)
    return pd.DataFrame(records).to_csv(index=False) + notes if records else notes
