"""Writes tables as text, Markdown, CSV, LaTeX or HTML; every format has a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from analysis.tables.csv import csv
from analysis.tables.html import html
from analysis.tables.latex import latex
from analysis.tables.markdown import markdown
from analysis.tables.table import Table
from analysis.tables.text import text

Format = Literal["text", "markdown", "csv", "latex", "html"]


def render(tables: Sequence[Table], style: Format, *, color: bool = False) -> str:
    """Write all tables in one format; text may have a terminal's colors."""
    match style:
        case "csv":
            return "\n".join(map(csv, tables))
        case "markdown":
            return "\n\n".join(map(markdown, tables)) + "\n"
        case "latex":
            return "\n".join(map(latex, tables))
        case "html":
            return "\n".join(html(table, f"table-{number}") for number, table in enumerate(tables, 1))
        case "text":
            return "\n".join(text(table, color=color) for table in tables)
