"""Writes tables as text, no wider than the terminal, or 80 columns if the output is none; COLUMNS overrides both."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from analysis.tables.table import Table, numbered, printable, shown, turn

_BORDER = 3
"""The number of characters that a column takes beside its cells."""

_OPTION = re.compile(r"(?=\+)")
_PUNCTUATION = re.compile(r"(?<=[_/=:;,)\]])|(?<=\w-)|(?<=\.)(?!\d)|(?=[(\[])")
"""Labels may be broken here, but not in a decimal number or behind a sign."""
_LABEL_BREAKS = (_OPTION, _PUNCTUATION)

_WIDEST_WORDS = 60
_WIDEST_TURNED = 25
"""The same in a table that was turned: two columns fit into 80 characters, beside the first."""

_ROOM = 24
"""The width that the repeated columns leave at least for a block, if their labels can be split."""

_LEAST_ROOM = 17
"""What three and more of them leave: enough for a number of four digits and two decimals, in brackets."""


def text(table: Table) -> str:
    """Draw a table. One that is too wide is split into blocks of columns that repeat the row labels.

    If it may be turned, that is done first. Of a table without rows only the title and the notes are shown.
    """
    return _drawn(table, _WIDEST_WORDS)


def _drawn(table: Table, widest_words: int) -> str:
    width = shutil.get_terminal_size().columns
    headings = [printable(heading) for heading in table.headings]
    rows = [[shown(cell) for cell in row] for row in table.rows]
    widths = [
        min(max(map(cell_len, column)), widest_words if table.holds_words(number) else 1000)
        for number, column in enumerate(zip(headings, *rows, strict=True))
    ]
    blocks = [list(range(len(headings)))]
    if sum(widths) + _BORDER * len(widths) + 1 > width:
        if table.turned:
            return _drawn(turn(table), _WIDEST_TURNED)
        keys = _key_columns(rows)
        widths[:keys] = _key_widths(rows, widths[:keys], width)
        room = width - 1 - sum(widths[:keys]) - _BORDER * keys
        for number in range(keys, len(headings)):
            cells = [cell_len(row[number]) for row in rows]
            narrow = max([*cells, _heading_width(headings[number])])
            widths[number] = max(1, min(widths[number], narrow, room - _BORDER))
        blocks = _blocks(widths, keys, room)
    headings = [_wrapped(heading, widths[n], _LABEL_BREAKS) for n, heading in enumerate(headings)]
    rows = [
        [_wrapped(cell, widths[n], _LABEL_BREAKS) if table.holds_words(n) else cell for n, cell in enumerate(row)]
        for row in rows
    ]
    drawn = [_wrapped(table.title, width)]
    for block in blocks if rows else []:
        words = [table.holds_words(number) for number in block]
        drawn.append(_block(headings, rows, widths, block, words))
    return "\n".join([*drawn, *(_wrapped(note, width) for note in numbered(table))]) + "\n"


def _wrapped(content: str, width: int, breaks: Sequence[re.Pattern[str]] = (_OPTION,)) -> str:
    """Break a text into lines at spaces, and words that are longer than a line at the first of `breaks` that helps.

    In a paragraph a path stays whole. A part without any break may remain longer than a line.
    """
    lines = [""]
    for word in printable(content).split():
        parts = [word]
        for pattern in breaks:
            parts = [line for part in parts for line in _packed(pattern.split(part), width)]
        joined = f"{lines[-1]} {parts[0]}".lstrip()
        if cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(parts[0])
        lines += parts[1:]
    return "\n".join(line for line in lines if line)


def _packed(parts: Sequence[str], width: int) -> list[str]:
    """Join as many consecutive parts as fit on a line."""
    lines = [""]
    for part in parts:
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _block(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    block: Sequence[int],
    words: Sequence[bool],
) -> str:
    drawn = RichTable(expand=False)
    for number, is_words in zip(block, words, strict=True):
        drawn.add_column(
            Text(headings[number]), justify="left" if is_words else "right", overflow="fold", width=widths[number]
        )
    for row in rows:
        drawn.add_row(*(Text(row[number]) for number in block))
    buffer = io.StringIO()
    Console(file=buffer, width=1000, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _blocks(widths: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """Fill blocks with columns, in their order, behind the `keys` columns that every block repeats."""
    blocks: list[list[int]] = []
    left = 0
    for number in range(keys, len(widths)):
        if not blocks or left < widths[number] + _BORDER:
            blocks.append(list(range(keys)))
            left = room
        blocks[-1].append(number)
        left -= widths[number] + _BORDER
    return blocks or [list(range(keys))]


def _key_columns(rows: Sequence[Sequence[str]]) -> int:
    """Count the first columns that are needed to tell rows apart; one column if four don't suffice."""
    keys = (keys for keys in range(1, 5) if len({tuple(row[:keys]) for row in rows}) == len(rows))
    return min(next(keys, 1), len(rows[0])) if rows else 1


def _key_widths(rows: Sequence[Sequence[str]], natural: Sequence[int], width: int) -> list[int]:
    """Choose the widths of the columns that blocks repeat: labels that would take too much are split at `+`."""
    parts = [
        max((cell_len(part) for row in rows for part in re.split(r"(?=\+)| ", row[key])), default=1)
        for key in range(len(natural))
    ]
    limits = [max(part, width // 4) for part in parts]
    if sum(map(min, natural, limits)) + _BORDER * len(natural) > width - _ROOM:
        share = width // (len(natural) + 1)
        if len(natural) > 2:  # their borders alone leave too little
            share = min(share, (width - _LEAST_ROOM) // len(natural) - _BORDER)
        limits = [share] * len(natural)
    return list(map(min, natural, limits))


def _heading_width(heading: str) -> int:
    """Return the least width at which a heading takes two lines and no word is broken."""
    width = max(map(cell_len, heading.split()), default=1)
    while len(textwrap.wrap(heading, width)) > 2:
        width += 1
    return width
