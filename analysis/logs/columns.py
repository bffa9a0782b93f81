"""Holds timing logs in memory, by column: thousands of logs load about fifty times as fast as lists of records do.

A log's table becomes two arrays, of whole numbers and of floats, with one row per column of the format. Truth
values are whole numbers here, and texts are dictionary-encoded: codes are indices of the sorted `words` of the table.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import timing_log
from jobs.timing_log import TABLES, Header, LogColumns, TimingLogError

KINDS = {name: {column.name: str(column.type) for column in fields(row)} for name, row in TABLES.items()}
"""Table -> column -> type: int, float, bool or str."""

WHOLE = {name: [column for column, kind in kinds.items() if kind != "float"] for name, kinds in KINDS.items()}
FLOATS = {name: [column for column, kind in kinds.items() if kind == "float"] for name, kinds in KINDS.items()}
TEXTS = {name: [WHOLE[name].index(c) for c in WHOLE[name] if KINDS[name][c] == "str"] for name in TABLES}
"""The rows of `Rows.whole` that hold texts."""

DEFAULTS = {
    name: {column.name: column.default for column in fields(row) if column.default is not MISSING}
    for name, row in TABLES.items()
}
"""The values of columns that an older log lacks."""

_HEADER = [attribute.name for attribute in fields(Header)]
_CHUNK = 64

Whole = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """One table of one log; the arrays have one row per column of `WHOLE` or `FLOATS`."""

    whole: Whole
    floats: Floats
    words: tuple[str, ...]
    """The texts of the table, sorted and without one that isn't used."""

    def __len__(self) -> int:
        return int(self.whole.shape[1])

    def __repr__(self) -> str:
        """All of it: two tables are the same if this is; NaN is equal to nothing."""
        return f"Rows({self.whole.tolist()}, {self.floats.tolist()}, {self.words})"


@dataclass(frozen=True, slots=True)
class Log:
    """One job's log."""

    header: Header
    tables: dict[str, Rows]
    attributes: dict[str, dict[str, Any]]
    """`state`, `storage` and `provenance`."""

    def header_facts(self) -> dict[str, Any]:
        """Return the header by name; its values are plain, so that nothing needs a copy."""
        return {name: getattr(self.header, name) for name in _HEADER}


def read(path: Path) -> Log:
    """Read one job's log.

    Raises:
        TimingLogError: if the file can't be opened, is no timing log, or has an unknown version.
    """
    return packed(timing_log.read_columns(path))


def read_many(paths: Sequence[Path], workers: int = 1) -> Iterator[Log | TimingLogError]:
    """Read logs, in the order of the paths; where one can't be read, its error is in its position.

    Args:
        paths: of the logs.
        workers: how many processes read. More than one only from a program that begins with
            `if __name__ == "__main__"`, as for every use of `multiprocessing`.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    if workers < 2 or len(chunks) < 2:
        for chunk in chunks:
            yield from _read_chunk(chunk)
        return
    # Not forked: HDF5 and others here hold locks that a fork would copy.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for logs in pool.map(_read_chunk, chunks):
            yield from logs


def usable_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_chunk(paths: Sequence[Path]) -> list[Log | TimingLogError]:
    logs: list[Log | TimingLogError] = []
    for path in paths:
        try:
            logs.append(read(path))
        except TimingLogError as error:
            logs.append(error)
    return logs


def packed(log: LogColumns) -> Log:
    """Pack the tables of a log as `Rows`."""
    return Log(log.header, {name: _packed(name, log.tables[name]) for name in TABLES}, log.attributes)


def empty(name: str) -> Rows:
    """Return a table without rows."""
    return _packed(name, dict.fromkeys(KINDS[name], ()))


def joined(name: str, logs: Sequence[Log]) -> tuple[list[str], Whole]:
    """Join one table of all logs: the sorted vocabulary, and whole numbers in which texts are codes of its words."""
    vocabulary = sorted(set(itertools.chain.from_iterable(log.tables[name].words for log in logs)))
    code = {word: number for number, word in enumerate(vocabulary)}
    whole = np.concatenate(
        [np.empty((len(WHOLE[name]), 0), np.int64), *(log.tables[name].whole for log in logs)], axis=1
    )
    start = 0
    for log in logs:
        rows = log.tables[name]
        part = whole[:, start : start + len(rows)]
        part[TEXTS[name]] = np.array([code[word] for word in rows.words], np.int64)[part[TEXTS[name]]]
        start += len(rows)
    return vocabulary, whole


def joined_floats(name: str, logs: Sequence[Log]) -> Floats:
    """Join the floats of one table of all logs."""
    return np.concatenate([np.empty((len(FLOATS[name]), 0)), *(log.tables[name].floats for log in logs)], axis=1)


def rows_of(name: str, whole: Whole, floats: Floats, vocabulary: Sequence[str]) -> Rows:
    """Make a table from codes of words in any vocabulary."""
    texts = TEXTS[name]
    used, codes = np.unique(whole[texts], return_inverse=True)
    words = [vocabulary[code] for code in used]
    order = sorted(range(len(words)), key=words.__getitem__)
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    packed = whole.copy()
    packed[texts] = rank[codes.reshape(len(texts), whole.shape[1])]
    return Rows(packed, floats.copy(), tuple(words[number] for number in order))


def _packed(name: str, columns: dict[str, Any]) -> Rows:
    kinds, length = KINDS[name], len(next(iter(columns.values())))
    texts = [columns[column] for column in WHOLE[name] if kinds[column] == "str"]
    words = sorted({word for column in texts for word in column})
    code = {word: number for number, word in enumerate(words)}
    whole = np.empty((len(WHOLE[name]), length), np.int64)
    for row, column in zip(whole, WHOLE[name], strict=True):
        row[:] = [code[word] for word in columns[column]] if kinds[column] == "str" else columns[column]
    floats = np.empty((len(FLOATS[name]), length))
    for number, column in enumerate(FLOATS[name]):
        floats[number] = columns[column]
    return Rows(whole, floats, tuple(words))
