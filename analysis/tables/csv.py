"""Writes tables as CSV, without a text that a spreadsheet would compute."""

from __future__ import annotations

import math
import re

import pandas as pd

from analysis.measures.trials import Trials
from analysis.tables.table import (
    Cell,
    Change,
    Estimate,
    Judged,
    Marked,
    Outcomes,
    Ratio,
    Table,
    counted,
    numbered,
    printable,
    shown_examples,
)


def csv(table: Table) -> str:
    """Write a table for programs: every part of a statistic in a column, the table's name first.

    Numbers have 12 significant digits: the last ones of a float, and tiny p-values, depend on the processor.
    """
    records = []
    for row in table.rows:
        record: dict[str, str | float] = {"table": table.name, "title": no_formula(printable(table.title))}
        for heading, cell in zip(table.headings, row, strict=True):
            fields = _fields(no_formula(printable(heading)) or "method", cell)
            record |= {key: _rounded(value) for key, value in fields.items()}
        records.append(record)
    examples = (f"{example.subject}: {example.text}: {example.command}" for example in shown_examples(table))
    lines = [*numbered(table), *examples]
    notes = "".join(f"# {_CELL_IN_NOTE.sub(_APOSTROPHE, printable(line))}\n" for line in lines)
    return pd.DataFrame(records).to_csv(index=False) + notes if records else notes


_LEAST_P = 1e-12
"""Smaller p-values are the rounding of floats."""


def _rounded(value: str | float) -> str | float:
    return float(f"{value:.12g}") if isinstance(value, float) and not value.is_integer() else value


def _significance(p: float) -> float:
    return float(f"{p:.3g}") if not p < _LEAST_P else _LEAST_P


_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d[\d.]*(e[+-]?\d+)?( %)?)?", re.IGNORECASE)
_CELL_IN_NOTE = re.compile(rf'([,;]["\s]*)(?!\+ is )(?={_FORMULA.pattern})')
"""A note isn't quoted: spreadsheets begin a cell behind its separators. Notes of this package contain `+ is`."""
_APOSTROPHE = r"\1'"


def no_formula(text: str) -> str:
    """Return a text that spreadsheets show as it is: one that they would compute gets an apostrophe, as OWASP advises.

    Numbers, with or without a sign, stay as they are.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _fields(key: str, cell: Cell) -> dict[str, str | float]:
    if isinstance(cell, str | Marked):
        text, notes = (cell, {}) if isinstance(cell, str) else (cell.text, {"notes": " ".join(map(str, cell.notes))})
        return {key: no_formula(printable(text)), **notes}
    if isinstance(cell, Outcomes):
        counts = {f"{key} {verdict}": count for verdict, count in counted(cell.of).items()}
        return {key: cell.of.verdict, **counts, f"{key} skipped": no_formula(printable(cell.of.skipped))}
    if isinstance(cell, Trials):
        median = cell.median()
        return {
            f"{key} median": median.estimate,
            f"{key} low": median.low,
            f"{key} high": median.high,
            f"{key} smallest": min(cell.durations_s, default=math.nan),
            f"{key} largest": max(cell.durations_s, default=math.nan),
            f"{key} valid": len(cell),
            f"{key} invalid": cell.invalid,
        }
    if isinstance(cell, Change | Ratio | Judged):
        low, high = cell.interval.low, cell.interval.high
        return {
            key: cell.interval.estimate,
            f"{key} low": low,
            f"{key} high": high,
            f"{key} p": _significance(cell.p),
            f"{key} verdict": cell.verdict,
        }
    if isinstance(cell, Estimate):
        return {key: cell.interval.estimate, f"{key} low": cell.interval.low, f"{key} high": cell.interval.high}
    return {key: cell.value}
