"""Tables as text, Markdown, CSV, LaTeX or HTML: one definition, harmless in each format whatever a log says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import pandas as pd
from tabulate import tabulate

from analysis.measures.method import Statistic
from analysis.tables.markup import html, latex
from analysis.tables.table import Cell, Change, Estimate, Marked, Ratio, Table, numbered, printable, shown
from analysis.tables.text import text

Format = Literal["text", "markdown", "csv", "latex", "html"]

_MARKDOWN = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\("), ("`", "\\`"))
"""What texts from logs must not do in Markdown: end a cell, be HTML, a link, a picture, or code."""


def render(tables: Sequence[Table], style: Format) -> str:
    """All tables as one text."""
    if style == "csv":
        return "\n".join(_csv(table) for table in tables)
    if style == "markdown":
        return "\n\n".join(_markdown(table) for table in tables) + "\n"
    if style == "latex":
        return "\n".join(latex(table) for table in tables)
    if style == "html":
        return "\n".join(html(table, f"table-{number}") for number, table in enumerate(tables, 1))
    return "\n".join(text(table) for table in tables)


def _markdown(table: Table) -> str:
    def cell(content: str) -> str:
        for character, harmless in _MARKDOWN:
            content = content.replace(character, harmless)
        return content

    rows = [[cell(shown(each)) for each in row] for row in table.rows]
    align = ["left" if table.holds_words(column) else "right" for column in range(len(table.headings))]
    body = tabulate(
        rows,
        headers=table.headings,
        tablefmt="pipe",
        colalign=align if rows else None,
        disable_numparse=True,
    )
    notes = "\n".join(f"- {cell(printable(note))}" for note in numbered(table))
    return f"### {cell(printable(table.title))}\n\n{body}\n\n{notes}"


def _csv(table: Table) -> str:
    """Numbers unrounded, a column for each part of a statistic, the table's name first: for machines."""
    records = []
    for row in table.rows:
        record: dict[str, str | float] = {"table": table.name, "title": no_formula(printable(table.title))}
        for heading, cell in zip(table.headings, row, strict=True):
            record |= _fields(no_formula(printable(heading)) or "method", cell)
        records.append(record)
    notes = "".join(f"# {_CELL_IN_NOTE.sub(_APOSTROPHE, printable(note))}\n" for note in numbered(table))
    return pd.DataFrame(records).to_csv(index=False) + notes if records else notes


_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d[\d.]*(e[+-]?\d+)?( %)?)?", re.IGNORECASE)
_CELL_IN_NOTE = re.compile(rf'([,;]["\s]*)(?!\+ is )(?={_FORMULA.pattern})')
"""A note isn't quoted: spreadsheets begin a cell behind each of its separators. Our own notes say what `+ is`."""
_APOSTROPHE = r"\1'"


def no_formula(text: str) -> str:
    """A text that spreadsheets show as it is: one that they would compute gets an apostrophe, as OWASP advises.

    Numbers, with or without a sign, stay as they are.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _fields(key: str, cell: Cell) -> dict[str, str | float]:
    if isinstance(cell, str):
        return {key: no_formula(printable(cell))}
    if isinstance(cell, Marked):
        return {key: no_formula(printable(cell.text)), "notes": " ".join(map(str, cell.notes))}
    if isinstance(cell, Statistic):
        return {
            f"{key} median": cell.median,
            f"{key} low": cell.low,
            f"{key} high": cell.high,
            f"{key} smallest": cell.smallest,
            f"{key} largest": cell.largest,
            f"{key} valid": cell.count,
            f"{key} invalid": cell.invalid,
        }
    if isinstance(cell, Change | Ratio):
        low, high = cell.interval.low, cell.interval.high
        return {
            key: cell.interval.estimate,
            f"{key} low": low,
            f"{key} high": high,
            f"{key} p": cell.p,
            f"{key} verdict": cell.verdict,
        }
    if isinstance(cell, Estimate):
        return {key: cell.interval.estimate, f"{key} low": cell.interval.low, f"{key} high": cell.interval.high}
    return {key: cell.value}
