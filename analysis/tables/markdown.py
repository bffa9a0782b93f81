"""Writes tables as Markdown: whatever a log holds is text, never markup."""

from __future__ import annotations

import re

from tabulate import tabulate

from analysis.tables.table import Table, numbered, printable, shown, shown_examples

_MARKDOWN = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\("), ("`", "\\`"))
"""Escapes, so that no text of a log ends a cell or becomes HTML, a link, a picture or code."""


def markdown(table: Table) -> str:
    """Write a table in Markdown, its title as a heading or a paragraph, and its notes and examples as lists."""

    def cell(content: str) -> str:
        for character, harmless in _MARKDOWN:
            content = content.replace(character, harmless)
        return content

    rows = [[cell(shown(content)) for content in row] for row in table.rows]
    align = ["left" if table.holds_words(column) else "right" for column in range(len(table.headings))]
    body = tabulate(
        rows,
        headers=[cell(printable(heading)) for heading in table.headings],
        tablefmt="pipe",
        colalign=align if rows else None,
        disable_numparse=True,
    )
    notes = "\n".join(f"- {cell(printable(note))}" for note in numbered(table))
    title = f"{'### ' if table.headed else ''}{cell(printable(table.title))}"
    examples = [
        f"- {cell(example.subject)}: {cell(example.text)}\n\n    {_code(example.command)}"
        for example in shown_examples(table)
    ]
    return "\n\n".join([title, body, notes, *examples])


def _code(content: str) -> str:
    """Write a text as code: between more backticks than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{fence} {content} {fence}" if "`" in content else f"{fence}{content}{fence}"
