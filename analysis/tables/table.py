"""Defines a table and its kinds of cells, independent of the format in which `analysis.tables.render` writes them."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, replace

from analysis.measures.statistics import Interval
from analysis.measures.trials import Trials
from jobs.faults import outcomes

MISSING = "-"


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
    """A plain quantity, shown with `decimals` decimals."""

    value: float
    decimals: int = 2


@dataclass(frozen=True, slots=True)
class Change:
    """A relative difference with its interval and the verdict: +25.0 % [+10.0, +40.0], not significant."""

    interval: Interval
    """The interval of the share: 0.25 is 25 %."""
    verdict: str
    p: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A factor with its interval and the verdict: 2.00 [1.90, 2.10], slower."""

    interval: Interval
    verdict: str
    p: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A quantity with its interval and the verdict: 2.00 [1.90, 2.10], significant."""

    interval: Interval
    verdict: str
    p: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantity with its interval: 2.00 [1.90, 2.10]."""

    interval: Interval
    decimals: int = 2


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with the numbers of the footnotes that belong to it."""

    text: str
    notes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of a method under a fault: the worst verdict, with its number of cases: silent 3 of 412."""

    of: outcomes.Cell
    notes: tuple[int, ...]
    """The numbers of the footnotes that belong to it: why it was skipped."""

    @property
    def text(self) -> str:
        """The verdict and the number in words."""
        verdict = self.of.verdict
        if not verdict:
            return MISSING
        return f"{verdict} {counted(self.of)[verdict]}" + ("" if verdict == outcomes.RIGHT else f" of {self.of.cases}")


Cell = str | Marked | Outcomes | Trials | Share | Part | Number | Change | Ratio | Judged | Estimate


@dataclass(frozen=True, slots=True)
class Example:
    """A case behind a cell of a table, and the command that repeats it."""

    subject: str
    text: str
    command: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table: headings carry the units, and the first column names the subject of a row."""

    name: str
    """A short name for files and CSV."""
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    footnotes: tuple[str, ...] = ()
    """The footnotes that cells are `Marked` with; the first is number 1."""
    turned: bool = False
    """Whether rows may be shown as columns where the width is limited: few rows with many long texts."""
    joined: bool = False
    """Whether the first two columns may be shown as one where the width is limited: short names."""
    examples: tuple[Example, ...] = ()
    """Shown as a list below the notes."""
    headed: bool = True
    """Whether its title is a heading in Markdown; otherwise it is a paragraph, for a page with headings of its own."""

    def holds_words(self, column: int) -> bool:
        """Return whether a column holds texts and no numbers."""
        return all(isinstance(row[column], str | Marked | Outcomes) for row in self.rows)


def turn(table: Table) -> Table:
    """Return a table with its rows as columns: the headings become the first column."""
    first, *others = table.headings
    rows = tuple(
        (heading, *(row[number] if isinstance(row[number], Marked) else shown(row[number]) for row in table.rows))
        for number, heading in enumerate(others, 1)
    )
    headings = (first, *(shown(row[0]) for row in table.rows))
    return replace(table, headings=headings, rows=rows, turned=False)


def join(table: Table) -> Table:
    """Return a table with its first two columns as one."""
    rows = tuple((f"{shown(row[0])}, {shown(row[1])}", *row[2:]) for row in table.rows)
    return replace(table, headings=(", ".join(table.headings[:2]), *table.headings[2:]), rows=rows, joined=False)


def counted(cell: outcomes.Cell) -> dict[str, int]:
    """Return the number of cases of every verdict, the worst one first."""
    return {outcomes.SILENT: cell.silent, outcomes.DETECTED: cell.detected, outcomes.RIGHT: cell.right}


def numbered(table: Table) -> list[str]:
    """Return the lines below a table: the footnotes with their numbers, then the other notes."""
    return [*(f"[{number}] {note}" for number, note in enumerate(table.footnotes, 1)), *table.notes]


def shown_examples(table: Table) -> list[Example]:
    """Return a table's examples without control characters."""
    return [Example(*map(printable, (example.subject, example.text, example.command))) for example in table.examples]


def shown(cell: Cell) -> str:
    """Write a cell for people to read."""
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, Marked | Outcomes):
        return " ".join([printable(cell.text), *(f"[{number}]" for number in cell.notes)])
    return "".join(word for word, _ in pieces(cell))


def pieces(cell: Trials | Share | Part | Number | Change | Ratio | Judged | Estimate) -> list[tuple[str, bool]]:
    """Split a cell of numbers into texts and whether they are numbers, so that a format can set numbers as such."""
    if isinstance(cell, Trials):
        return _trials_pieces(cell)
    if isinstance(cell, Change):
        sign_is_enough = cell.verdict in {"slower", "faster"}
        return _interval_pieces(cell.interval, "+.1f", 100, " %", "" if sign_is_enough else cell.verdict)
    if isinstance(cell, Ratio | Judged | Estimate):
        decimals, verdict = (cell.decimals, "") if isinstance(cell, Estimate) else (2, cell.verdict)
        return _interval_pieces(cell.interval, f".{decimals}f", 1, "", verdict)
    if math.isnan(cell.value):
        return [(MISSING, False)]
    if isinstance(cell, Number):
        return [(f"{cell.value:.{cell.decimals}f}", True)]
    return [(f"{100 * cell.value:{'+.1f' if isinstance(cell, Share) else '.0f'}}", True), (" %", False)]


def _trials_pieces(cell: Trials) -> list[tuple[str, bool]]:
    invalid = [(", ", False), (f"{cell.invalid}", True), (" invalid", False)] if cell.invalid else []
    if not len(cell):
        return invalid[1:] or [(MISSING, False)]
    interval = _interval_pieces(cell.median(), ".2f", 1, "", "")
    return [*interval, (", n = ", False), (f"{len(cell)}", True), *invalid]


def _interval_pieces(interval: Interval, spec: str, scale: float, unit: str, verdict: str) -> list[tuple[str, bool]]:
    if math.isnan(interval.estimate):
        return [(MISSING, False)]
    estimate, low, high = (f"{scale * value:{spec}}" for value in (interval.estimate, interval.low, interval.high))
    parts = [(estimate, True), (unit, False)]
    if not math.isnan(interval.low):
        parts += [(" [", False), (low, True), (", ", False), (high, True), ("]", False)]
    return [*parts, (f", {verdict}" if verdict else "", False)]


def printable(text: str) -> str:
    """Return a text from a log on one line, without control characters."""
    joined = " ".join(text.split())
    return "".join(character for character in joined if unicodedata.category(character)[0] != "C")
