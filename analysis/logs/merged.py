"""Reads and writes the merged file: the logs of many jobs in one HDF5 file, column by column.

/             attrs: schema = "ckpt-timing-logs", schema_version
/jobs         one row per job: study, job_id, status, error, planned (JSON), logged (whether it left a log)
/attributes   the attributes of the logs: job (its row), group (header, state, …), key, value (JSON)
/samples, /disk, …    the tables of the logs, one below the other; `job` is the row of the job in /jobs

Columns of texts are dictionary-encoded: integer codes into the dataset `<column>_values`, or `words` of a table.
The order of the logs, and repeating one, change nothing. The format's history:
    1  a group per job, with its log inside; still read
    2  columns: ten thousand logs make fifty datasets instead of half a million; the last three tables came later
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from analysis.errors import ResultsError
from analysis.logs import columns
from analysis.logs.columns import FLOATS, KINDS, TEXTS, WHOLE, Log
from analysis.logs.frames import Entry
from ckpt.cli import unwritten
from jobs import timing_log
from jobs.timing_log import ATTRIBUTES, TABLES, Group, Header, sealed, write_atomically

SCHEMA = "ckpt-timing-logs"
VERSION = 2

_JOB = ("study", "job_id", "status", "error")


def read(file: Group, path: Path) -> Iterator[tuple[dict[str, Any], Log | None]]:
    """Read every job: its study, job_id, status, error and planned, and its log if it left one.

    Args:
        file: as `jobs.timing_log.opened` has it.
        path: of it, for messages.

    Raises:
        ResultsError: if the file has an unknown version.
        ValueError, TypeError, LookupError, TimingLogError: if its content isn't what `write` makes.
    """
    version = file.attributes.get("schema_version")
    if version == VERSION:
        yield from _read_columns(file)
    elif version == 1:
        for study, jobs in file.group("jobs").groups.items():
            for name, job in jobs.groups.items():
                facts = job.attributes
                log = job.groups.get("log")
                where = f"{path}:/jobs/{study}/{name}"
                yield (
                    _checked({key: facts[key] for key in _JOB} | {"planned": json.loads(facts["planned"])}),
                    columns.packed(timing_log.columns_of(log, where)) if log is not None else None,
                )
    else:
        raise ResultsError(f"{path} has version {version} of the merged file; {VERSION} is known here")


def _checked(job: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(job[key], str) for key in _JOB) or not isinstance(job["planned"], dict):
        raise TypeError(f"the attributes of a job aren't text: {str(job)[:80]}")
    return job


def _read_columns(file: Group) -> Iterator[tuple[dict[str, Any], Log | None]]:
    jobs = {key: _texts(file.group("jobs"), key) for key in (*_JOB, "planned")}
    logged = _numbers(file.group("jobs"), "logged").astype(bool)
    tables = {name: _Table(file.group(name), name, len(logged)) for name in TABLES if name in file.groups}
    absent = {
        name: columns.empty(name) for name in TABLES if name not in file.groups
    }  # written before that table existed
    attributes = _attributes(file.group("attributes"), len(logged))
    if any(len(values) != len(logged) for values in jobs.values()):
        raise ValueError("the columns of its 'jobs' differ in length")
    for job in range(len(logged)):
        log = None
        if logged[job]:
            header = {key: value for key, value in attributes[job]["header"].items() if key in _HEADER}
            rest = {name: attributes[job].get(name, {}) for name in ATTRIBUTES}
            rows = absent | {name: table.of(job) for name, table in tables.items()}
            log = Log(timing_log.header_of(header), rows, rest)
        row = {key: values[job] for key, values in jobs.items()}
        yield _checked(row | {"planned": json.loads(row["planned"])}), log


_HEADER = {attribute.name for attribute in fields(Header)}


class _Table:
    """One table of all jobs, from which the rows of a job are cut."""

    def __init__(self, group: Group, name: str, jobs: int) -> None:
        self._name = name
        job = _numbers(group, "job")
        if len(job) and (job[0] < 0 or job[-1] >= jobs or (np.diff(job) < 0).any()):
            raise ValueError(f"the rows of its {name!r} belong to no jobs")
        self._starts = np.searchsorted(job, np.arange(jobs + 1))
        self._whole = np.empty((len(WHOLE[name]), len(job)), np.int64)
        self._floats = np.empty((len(FLOATS[name]), len(job)))
        self._words: list[str] = group.values("words", "str")
        for array, names in ((self._whole, WHOLE[name]), (self._floats, FLOATS[name])):
            for row, column in zip(array, names, strict=True):
                if column not in group.columns:
                    row[:] = columns.DEFAULTS[name][column]
                else:
                    row[:] = _numbers(group, column, len(job), "float" if names is FLOATS[name] else "int")
        _check_codes(self._whole[TEXTS[name]], self._words, name)

    def of(self, job: int) -> columns.Rows:
        start, end = self._starts[job], self._starts[job + 1]
        return columns.rows_of(self._name, self._whole[:, start:end], self._floats[:, start:end], self._words)


def _attributes(group: Group, jobs: int) -> list[dict[str, dict[str, Any]]]:
    attributes: list[dict[str, dict[str, Any]]] = [{} for _ in range(jobs)]
    rows = _numbers(group, "job")
    if len(rows) and (rows.min() < 0 or rows.max() >= jobs):
        raise ValueError("its attributes belong to no jobs")
    texts = [_texts(group, column) for column in ("group", "key", "value")]
    values = {text: timing_log.plain_fact(json.loads(text)) for text in set(texts[-1])}
    for job, name, key, value in zip(rows.tolist(), *texts, strict=True):
        attributes[job].setdefault(name, {})[key] = values[value]
    return attributes


def _texts(group: Group, column: str) -> list[str]:
    words, codes = group.values(f"{column}_values", "str"), _numbers(group, column)
    _check_codes(codes, words, column)
    return [words[code] for code in codes.tolist()]


def _check_codes(codes: NDArray[Any], words: Sequence[str], name: str) -> None:
    if codes.size and (codes.min() < 0 or codes.max() >= len(words)):
        raise ValueError(f"a text of its {name!r} is in no list")


def _numbers(group: Group, column: str, length: int | None = None, kind: str = "int") -> NDArray[Any]:
    values: NDArray[Any] = group.values(column, kind)
    if length not in {None, len(values)}:
        raise ValueError(f"its column {column!r} is of another length than others")
    return values


def write_merged(entries: Sequence[Entry], output: Path) -> None:
    """Write the jobs, in the order of study and id, into one file that appears whole or not at all.

    Raises:
        ResultsError: if it can't be written.
    """
    ordered = sorted(entries, key=lambda entry: (entry.study, entry.job_id))
    jobs = [{key: getattr(entry, key) for key in (*_JOB, "planned")} for entry in ordered]
    # In memory: HDF5 kills the process where a disk is full.
    with h5py.File("merged", "w", driver="core", backing_store=False) as file:
        write(file, jobs, [entry.log for entry in ordered])
        file.flush()
        image = sealed(file.id.get_file_image())
    try:
        write_atomically(output, image, sync=True, mode=0o644)
    except OSError as error:
        raise ResultsError(unwritten(error, output)) from error


def write(file: h5py.File, jobs: Sequence[dict[str, Any]], logs: Sequence[Log | None]) -> None:
    """Write jobs, in the form that `read` gives, and their logs into an open, empty file."""
    file.attrs["schema"], file.attrs["schema_version"] = SCHEMA, VERSION
    group = _table(file, "jobs", len(jobs))
    for key in _JOB:
        # An error may name any path: bytes that are no UTF-8 too.
        _write_texts(group, key, [job[key].encode("utf-8", "backslashreplace").decode() for job in jobs], "jobs")
    _write_texts(group, "planned", [json.dumps(job["planned"], sort_keys=True) for job in jobs], "jobs")
    _write_column(group, "logged", np.array([log is not None for log in logs], "i1"), "jobs")
    rows = [
        (number, name, key, json.dumps(value))
        for number, log in enumerate(logs)
        if log is not None
        for name, facts in (("header", log.header_facts()), *sorted(log.attributes.items()))
        for key, value in sorted(facts.items())
    ]
    group = _table(file, "attributes", len(rows))
    _write_column(group, "job", np.array([row[0] for row in rows], np.int32), "attributes")
    for number, column in enumerate(("group", "key", "value"), 1):
        _write_texts(group, column, [str(row[number]) for row in rows], "attributes")
    for name in TABLES:
        _write_table(file, name, logs)


def _write_table(file: h5py.File, name: str, logs: Sequence[Log | None]) -> None:
    present = [log for log in logs if log is not None]
    lengths = [0 if log is None else len(log.tables[name]) for log in logs]
    group = _table(file, name, sum(lengths))
    _write_column(group, "job", np.repeat(np.arange(len(logs), dtype=np.int32), lengths), name)
    words, whole = columns.joined(name, present)
    floats = columns.joined_floats(name, present)
    group.create_dataset("words", data=words, shape=(len(words),), dtype=h5py.string_dtype()).make_scale("words")
    about = {column.name: column.metadata for column in fields(TABLES[name])}
    for array, names in ((whole, WHOLE[name]), (floats, FLOATS[name])):
        for row, column in zip(array, names, strict=True):
            small = KINDS[name][column] in {"bool", "str"}
            dataset = _write_column(group, column, row.astype(np.int32) if small else row, name)
            dataset.attrs["units"] = about[column]["units"]
            dataset.attrs["long_name"] = about[column]["long_name"]
            if KINDS[name][column] == "str":
                dataset.attrs["places_in"] = "words"


def _table(file: h5py.File, name: str, length: int) -> h5py.Group:
    group = file.create_group(name)
    scale = group.create_dataset(f"{name}_row", data=np.arange(length, dtype=np.int64))
    scale.make_scale(f"{name}_row")
    return group


def _write_column(group: h5py.Group, column: str, values: Any, name: str) -> h5py.Dataset:
    # Most columns hardly vary: the fastest compression makes them a hundredth.
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if len(values) else {}
    dataset = group.create_dataset(column, data=values, **packed)
    dataset.dims[0].attach_scale(group[f"{name}_row"])
    return dataset


def _write_texts(group: h5py.Group, column: str, texts: Sequence[str], name: str) -> None:
    words = sorted(set(texts))
    code = {word: number for number, word in enumerate(words)}
    _write_column(group, column, np.array([code[text] for text in texts], np.int32), name)
    values = group.create_dataset(f"{column}_values", data=words, shape=(len(words),), dtype=h5py.string_dtype())
    values.make_scale(f"{column}_values")
