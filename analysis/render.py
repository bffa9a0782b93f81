"""Tables as text, Markdown or CSV: each cell from its one definition in `analysis.tables`, harmless in its format."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from analysis.comparison import Statistic
from analysis.tables import Cell, Marked, Number, Share, Table

Format = Literal["text", "markdown", "csv"]

_TEXTS = {
    "",
    "method",
    "best for",
    "question",
    "strategies",
    "unit",
    "next best",
    "kind of load",
    "save bound by",
    "load bound by",
}
"""The columns that hold words; all others hold numbers."""

_MARKDOWN = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\("), ("`", "\\`"))
"""What texts from logs must not do in Markdown: end a cell, be HTML, a link, a picture, or code."""


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
