"""Writes tables as text, no wider than the terminal, or 80 columns if the output is none; COLUMNS overrides both."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from analysis.tables.table import Cell, Example, Outcomes, Table, join, numbered, printable, shown, shown_examples, turn
from jobs.faults.outcomes import DETECTED, RIGHT, SILENT

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


_SHELL_OPTION = re.compile(r"(?= --)")
_GOES_ON = " \\"
_INDENT = "  "

_COLORS = {SILENT: "red", DETECTED: "yellow", RIGHT: "green"}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as it is drawn: its texts have the lines that fit its width."""

    heading: str
    width: int
    is_words: bool
    cells: list[Text]


def text(table: Table, *, color: bool = False) -> str:
    """Draw a table. One that is too wide is split into blocks of columns that repeat the row labels.

    If it may be turned, or its first columns joined, that is done first. Of a table without rows only the title and
    the notes are shown.

    Args:
        table: what to draw.
        color: give outcomes of faults a terminal's colors.
    """
    return _drawn(table, _WIDEST_WORDS, color=color)


def _drawn(table: Table, widest_words: int, *, color: bool, narrow: bool = False) -> str:
    width = shutil.get_terminal_size().columns
    headings = [printable(heading) for heading in table.headings]
    rows = [[_stacked(cell) if narrow else shown(cell) for cell in row] for row in table.rows]
    widths = [
        min(max(map(_cell_width, column)), widest_words if table.holds_words(number) else 1000)
        for number, column in enumerate(zip(headings, *rows, strict=True))
    ]
    blocks = [list(range(len(headings)))]
    if sum(widths) + _BORDER * len(widths) + 1 > width:
        if table.turned:
            return _drawn(turn(table), _WIDEST_TURNED, color=color)
        if table.joined:
            return _drawn(join(table), widest_words, color=color, narrow=True)
        least = [
            max([*map(_cell_width, column), _heading_width(heading)])
            for heading, *column in zip(headings, *rows, strict=True)
        ]
        keys = 1 if narrow else _key_columns(rows)
        widths[:keys] = _rest(widths[0], least[1:], width) if narrow else _key_widths(rows, widths[:keys], width)
        room = width - 1 - sum(widths[:keys]) - _BORDER * keys
        for number in range(keys, len(headings)):
            widths[number] = max(1, min(widths[number], least[number], room - _BORDER))
        blocks = _blocks(widths, keys, room)
    columns = [_column(table, number, widths[number], narrow=narrow) for number in range(len(headings))]
    drawn = [_wrapped(table.title, width)]
    drawn += [_block([columns[number] for number in block], color=color, lines=narrow) for block in blocks if rows]
    drawn += [_wrapped(note, width) for note in numbered(table)]
    return "\n".join([*drawn, *(_example(example, width) for example in shown_examples(table))]) + "\n"


def _stacked(cell: Cell) -> str:
    """Write a cell, of outcomes the verdict above the number."""
    return shown(cell).replace(" ", "\n", 1) if isinstance(cell, Outcomes) and cell.of.verdict else shown(cell)


def _cell_width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _column(table: Table, number: int, width: int, *, narrow: bool) -> _Column:
    is_words, cells = table.holds_words(number), []
    for cell in (row[number] for row in table.rows):
        content = _stacked(cell) if narrow else shown(cell)
        if is_words:
            content = "\n".join(_wrapped(line, width, _LABEL_BREAKS) for line in content.split("\n"))
        color = _COLORS.get(cell.of.verdict, "") if isinstance(cell, Outcomes) else ""
        cells.append(Text(content, style=color))
    return _Column(_wrapped(table.headings[number], width, _LABEL_BREAKS), width, is_words, cells)


def _example(example: Example, width: int) -> str:
    room = width - len(_INDENT)
    lines = [_wrapped(example.text, room, _LABEL_BREAKS), _continued(example.command, room)]
    return "\n".join(["", _wrapped(example.subject, width), *(textwrap.indent(line, _INDENT) for line in lines)])


def _continued(command: str, width: int) -> str:
    """Break a command before options, so that a shell takes all its lines for one command."""
    lines = _packed(_SHELL_OPTION.split(command), width - len(_INDENT) - len(_GOES_ON))
    return f"{_GOES_ON}\n{_INDENT}".join(line.strip() for line in lines)


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


def _block(columns: Sequence[_Column], *, color: bool, lines: bool) -> str:
    drawn = RichTable(expand=False, show_lines=lines)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.is_words else "right"
        drawn.add_column(Text(column.heading), justify=justify, overflow="fold", width=column.width)
    for row in zip(*(column.cells for column in columns), strict=True):
        drawn.add_row(*row)
    buffer = io.StringIO()
    Console(file=buffer, width=1000, color_system="standard" if color else None).print(drawn)
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


def _rest(natural: int, others: Sequence[int], width: int) -> list[int]:
    """Choose the width of the first column of a table that is not to be split: what the others leave."""
    left = width - 1 - sum(others) - _BORDER * (1 + len(others))
    return [min(natural, max(left, _LEAST_ROOM))]


def _heading_width(heading: str) -> int:
    """Return the least width at which a heading takes two lines and no word is broken."""
    width = max(map(cell_len, heading.split()), default=1)
    while len(textwrap.wrap(heading, width)) > 2:
        width += 1
    return width
