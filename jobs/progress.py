"""How far a job is, by its timing log: what a watcher shows, for a tenth of what it costs to read the whole log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5s, h5t

from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.own_hdf5 import read_file
from jobs.provenance import CODE_VERSIONS, version_changed
from jobs.timing_log import TimingLog

FILE_OPERATIONS = 8
"""System calls of `read` for a log as this package writes it: open, status (3), position, content, its end, close."""

_BLOCK_BYTES = len(timing_log.sealed(b""))
"""Of the seal before a log's content."""

_NUMBERS = {"trial": np.int64, "state_bytes": np.int64, "start_s": np.float64, "duration_s": np.float64}
_WORDS = ("phase", "operation", "cache")
_TEXT = h5t.py_create(h5py.string_dtype())
_MEMORY: dict[type, Any] = {np.int64: h5t.NATIVE_INT64, np.float64: h5t.NATIVE_DOUBLE, object: _TEXT}


@dataclass(frozen=True, slots=True)
class Progress:
    """What a timing log says of its job."""

    status: str
    error: str
    code_changed: str
    """How the code that ran differs from what was submitted; empty if it doesn't."""
    trials_done: int
    """Trials with a total, warm-ups included."""
    last_bandwidth_gbps: float | None
    """Of the last operation, in GB/s of the state's logical size, from the first rank's start to the last one's end."""


def of(log: TimingLog) -> Progress:
    """The progress in a log that has been read."""
    columns = {name: [getattr(sample, name) for sample in log.samples] for name in (*_NUMBERS, *_WORDS)}
    return _progress(log.header.status, log.header.error, log.provenance, columns)


def read(path: Path) -> Progress:
    """Read a log's progress: its few columns, where it is as this package writes it, else all of it.

    Raises:
        TimingLogError: as `timing_log.read`.
    """
    try:
        return _quickly(read_file(path))
    except (TimingLogError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return of(timing_log.read(path))  # the careful reader knows what is wrong with it, if anything is


def _quickly(image: bytes) -> Progress:
    """The progress in a log's bytes.

    Raises:
        ValueError: as other errors do, if it isn't just as this package writes it.
    """
    if image != timing_log.sealed(image[_BLOCK_BYTES:]):
        raise ValueError("no seal, or a broken one")
    file = h5f.open_file_image(image)
    try:
        root = h5g.open(file, b"/")
        if _text(root, "schema") != timing_log.SCHEMA or _number(root, "schema_version") != timing_log.SCHEMA_VERSION:
            raise ValueError("another format")
        provenance = h5g.open(file, _own(root, "provenance"))
        versions = {key: _text(provenance, key) for key in CODE_VERSIONS if h5a.exists(provenance, key.encode())}
        samples = h5g.open(file, _own(root, "samples"))
        columns = {name: _column(samples, name, kind, len(image)) for name, kind in _NUMBERS.items()}
        for name in _WORDS:
            columns[name] = [word.decode() for word in _column(samples, name, object, len(image))]
        if len(set(map(len, columns.values()))) != 1:
            raise ValueError("columns of several lengths")
        return _progress(_text(root, "status"), _text(root, "error"), versions, columns)
    finally:
        file.close()


def _own(group: Any, name: str) -> bytes:
    """The name of what lies in this very file."""
    if group.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise ValueError("a link to elsewhere")
    return name.encode()


def _column(group: Any, name: str, kind: type, most_bytes: int) -> list[Any]:
    """A dataset of the group whose values lie in its file as they are, and so are no more than the file is long."""
    dataset = h5d.open(group, _own(group, name))
    (length,) = dataset.shape
    if length > most_bytes or (length and dataset.get_offset() is None):
        raise ValueError("stored in another way")
    values = np.empty(length, kind)
    if length:
        dataset.read(h5s.ALL, h5s.ALL, values, _MEMORY[kind])
    found: list[Any] = values.tolist()
    return found


def _text(group: Any, name: str) -> str:
    value = np.empty((), object)
    h5a.open(group, name.encode()).read(value, _TEXT)
    text: bytes = value.item()
    return text.decode()


def _number(group: Any, name: str) -> int:
    value = np.empty((), np.int64)
    h5a.open(group, name.encode()).read(value, h5t.NATIVE_INT64)
    return int(value)


def _progress(status: str, error: str, provenance: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> Progress:
    totals = [row for row, phase in enumerate(columns["phase"]) if phase == "total"]
    done = {columns["trial"][row] for row in totals}
    return Progress(status, error, version_changed(provenance), len(done), _bandwidth_gbps(totals, columns))


def _bandwidth_gbps(totals: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> float | None:
    """Of the last operation of these rows."""
    if not totals:
        return None

    def operation(row: int) -> tuple[Any, ...]:
        return columns["trial"][row], columns["operation"][row], columns["cache"][row]

    same = [row for row in totals if operation(row) == operation(totals[-1])]
    starts = [columns["start_s"][row] for row in same]
    duration_s = max(columns["start_s"][row] + columns["duration_s"][row] for row in same) - min(starts)
    return sum(columns["state_bytes"][row] for row in same) / duration_s / 1e9 if duration_s > 0 else None
