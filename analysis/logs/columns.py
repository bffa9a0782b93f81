"""Timing logs as columns: what takes a list of records a minute takes an array a second, and there may be thousands.

A log's table becomes two arrays, of whole numbers and of floats, with one row for each column of the format. Truth
values are whole numbers here, and so are texts: places in the sorted `words` of that table.
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

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5s, h5t
from numpy.typing import NDArray

from jobs import timing_log
from jobs.timing_log import (
    SCHEMA,
    SCHEMA_VERSION,
    Ceiling,
    DiskUse,
    Header,
    Rank,
    Sample,
    TimingLog,
    TimingLogError,
    check_kind,
)

TABLES: dict[str, type] = {"samples": Sample, "disk": DiskUse, "ceiling": Ceiling, "ranks": Rank}

ATTRIBUTES = ("state", "storage", "provenance")

KINDS = {name: {each.name: str(each.type) for each in fields(row)} for name, row in TABLES.items()}
"""The columns of each table and their types: int, float, bool or str."""

WHOLE = {name: [column for column, kind in kinds.items() if kind != "float"] for name, kinds in KINDS.items()}
FLOATS = {name: [column for column, kind in kinds.items() if kind == "float"] for name, kinds in KINDS.items()}
TEXTS = {name: [WHOLE[name].index(c) for c in WHOLE[name] if KINDS[name][c] == "str"] for name in TABLES}
"""The rows of `Rows.whole` that hold texts."""

DEFAULTS = {
    name: {each.name: each.default for each in fields(row) if each.default is not MISSING}
    for name, row in TABLES.items()
}
"""What stands for the columns that an older log lacks."""

_LATER = {"ceiling", "ranks"}
"""Logs were without a ceiling once, and of a single process."""

_HEADER = [each.name for each in fields(Header)]
_HEADER_DEFAULTS = {each.name: each.default for each in fields(Header) if each.default is not MISSING}

_TEXT = h5t.py_create(h5py.string_dtype())
_PLAIN: dict[type, type] = {h5t.TypeIntegerID: np.int64, h5t.TypeFloatID: np.float64}
_PLAIN_TYPES = {np.int64: h5t.NATIVE_INT64, np.float64: h5t.NATIVE_DOUBLE}
_MEMORY = {"str": (object, _TEXT), "float": (np.float64, h5t.NATIVE_DOUBLE)}
_CHUNK = 64

Whole = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """One table of one log; each array has a row for each column of `WHOLE` or `FLOATS`."""

    whole: Whole
    floats: Floats
    words: tuple[str, ...]
    """Sorted, and each of them used."""

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
        """The header by name; its values are plain, so that nothing needs a copy."""
        return {name: getattr(self.header, name) for name in _HEADER}


def read(path: Path) -> Log:
    """Read one job's log.

    Raises:
        TimingLogError: if the file can't be opened, is no timing log, or has an unknown version.
    """
    try:
        with timing_log.opened(path) as file:
            return _quickly(file)
    except TimingLogError:
        return of(timing_log.read(path))  # slower, knows every version and every message


def read_many(paths: Sequence[Path], workers: int = 1) -> Iterator[Log | TimingLogError]:
    """Read logs, in the order of the paths; where one can't be read, its error stands.

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
        for found in pool.map(_read_chunk, chunks):
            yield from found


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_chunk(paths: Sequence[Path]) -> list[Log | TimingLogError]:
    found: list[Log | TimingLogError] = []
    for path in paths:
        try:
            found.append(read(path))
        except TimingLogError as error:
            found.append(error)
    return found


def of(log: TimingLog) -> Log:
    """A log that is held as records, as columns."""
    tables = {}
    for name in TABLES:
        rows = getattr(log, name)
        columns = {column: [getattr(row, column) for row in rows] for column in KINDS[name]}
        tables[name] = _packed(name, columns, len(rows))
    return Log(log.header, tables, {name: getattr(log, name) for name in ATTRIBUTES})


def empty(name: str) -> Rows:
    """A table without rows."""
    return _packed(name, dict.fromkeys(KINDS[name], ()), 0)


def joined(name: str, logs: Sequence[Log]) -> tuple[list[str], Whole]:
    """The whole numbers of one table of all logs, its texts as places in one vocabulary, which is sorted."""
    vocabulary = sorted(set(itertools.chain.from_iterable(log.tables[name].words for log in logs)))
    place = {word: number for number, word in enumerate(vocabulary)}
    whole = np.concatenate(
        [np.empty((len(WHOLE[name]), 0), np.int64), *(log.tables[name].whole for log in logs)], axis=1
    )
    start = 0
    for log in logs:
        rows = log.tables[name]
        here = whole[:, start : start + len(rows)]
        here[TEXTS[name]] = np.array([place[word] for word in rows.words], np.int64)[here[TEXTS[name]]]
        start += len(rows)
    return vocabulary, whole


def joined_floats(name: str, logs: Sequence[Log]) -> Floats:
    """The floats of one table of all logs."""
    return np.concatenate([np.empty((len(FLOATS[name]), 0)), *(log.tables[name].floats for log in logs)], axis=1)


def rows_of(name: str, whole: Whole, floats: Floats, vocabulary: Sequence[str]) -> Rows:
    """A table whose texts are places in any vocabulary."""
    texts = TEXTS[name]
    used, places = np.unique(whole[texts], return_inverse=True)
    words = [vocabulary[place] for place in used]
    order = sorted(range(len(words)), key=words.__getitem__)
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    packed = whole.copy()
    packed[texts] = rank[places.reshape(len(texts), whole.shape[1])]
    return Rows(packed, floats.copy(), tuple(words[place] for place in order))


def _packed(name: str, columns: dict[str, Any], length: int) -> Rows:
    kinds = KINDS[name]
    texts = [columns[column] for column in WHOLE[name] if kinds[column] == "str"]
    words = sorted({word for column in texts for word in column})
    place = {word: number for number, word in enumerate(words)}
    whole = np.empty((len(WHOLE[name]), length), np.int64)
    for row, column in zip(whole, WHOLE[name], strict=True):
        row[:] = [place[word] for word in columns[column]] if kinds[column] == "str" else columns[column]
    floats = np.empty((len(FLOATS[name]), length))
    for number, column in enumerate(FLOATS[name]):
        floats[number] = columns[column]
    return Rows(whole, floats, tuple(words))


def _quickly(file: h5py.File) -> Log:
    """Read by HDF5's own calls: h5py's objects would take longer to make than the data to read."""
    root = file.id
    header = _attributes(h5g.open(root, b"/"))
    if header.pop("schema") != SCHEMA or header.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError
    tables = {
        name: _table(h5g.open(root, name.encode()), name) for name in TABLES if name in file or name not in _LATER
    }
    attributes = {name: dict(sorted(_attributes(h5g.open(root, name.encode())).items())) for name in ATTRIBUTES}
    absent = {name: empty(name) for name in TABLES if name not in tables}
    known = _HEADER_DEFAULTS | header
    return Log(timing_log.header_of({name: known[name] for name in _HEADER}), tables | absent, attributes)


def _table(group: Any, name: str) -> Rows:
    columns: dict[str, Any] = {}
    length = -1
    for column, kind in KINDS[name].items():
        try:
            dataset = h5d.open(group, column.encode())
        except KeyError:
            columns[column] = [DEFAULTS[name][column]] * length  # a log of before that column
            continue
        check_kind(dataset, kind, column)
        shape = dataset.shape
        if len(shape) != 1 or length not in {-1, shape[0]}:
            raise ValueError
        length = shape[0]
        dtype, memory = _MEMORY.get(kind, (np.int64, h5t.NATIVE_INT64))
        values = np.empty(length, dtype)
        if length:
            dataset.read(h5s.ALL, h5s.ALL, values, memory)
        columns[column] = [value.decode() for value in values] if kind == "str" else values
    return _packed(name, columns, length)


def _attributes(group: Any) -> dict[str, Any]:
    names: list[bytes] = []
    h5a.iterate(group, names.append)  # opening them by number would sort all of them each time
    found = {}
    for name in names:
        attribute = h5a.open(group, name)
        if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
            raise ValueError  # the slow way has the message
        kind = attribute.get_type()
        if isinstance(kind, h5t.TypeStringID) and kind.is_variable_str():
            text: Any = np.empty((), object)
            attribute.read(text, _TEXT)
            found[name.decode()] = text[()].decode()
        else:
            plain: Any = _PLAIN.get(type(kind))
            value = np.empty((), plain or attribute.dtype)
            attribute.read(value, _PLAIN_TYPES.get(plain))
            found[name.decode()] = timing_log.plain_fact(value.item())
    return found
