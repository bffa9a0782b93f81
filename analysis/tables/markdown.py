"""Writes tables as Markdown: whatever a log holds is text, never markup."""

from __future__ import annotations

from tabulate import tabulate

from analysis.tables.table import Table, numbered, printable, shown

_MARKDOWN = (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\("), ("`", "\\`"))
"""Escapes, so that no text of a log ends a cell or becomes HTML, a link, a picture or code."""


def markdown(table: Table) -> str:
    """Write a table in Markdown, its title as a heading and its notes as a list."""

    def cell(content: str) -> str:
        for character, harmless in _MARKDOWN:
            content = content.replace(character, harmless)
        return content

    rows = [[cell(shown(content)) for content in row] for row in table.rows]
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
