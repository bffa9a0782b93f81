"""The merged file: the logs of many jobs in one HDF5 file, column by column.

/             attrs: schema = "ckpt-timing-logs", schema_version
/jobs         one row per job: study, job_id, status, error, planned (JSON), logged (whether it left a log)
/attributes   what the logs say of their jobs: job (its row), group (header, state, …), key, value (JSON)
/samples, /disk, /ceiling, /ranks    the logs' tables, one below the other, each row with its job's in /jobs as `job`

A column of texts holds places in the dataset `<column>_values`. The format's history:
    1  a group for each job, with its log inside; still read
    2  columns: ten thousand logs make fifty datasets instead of half a million; /ranks came later
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
from jobs import timing_log
from jobs.timing_log import ATTRIBUTES, TABLES, Group, Header

SCHEMA = "ckpt-timing-logs"
VERSION = 2

_JOB = ("study", "job_id", "status", "error")


def read(file: Group, path: Path) -> Iterator[tuple[dict[str, Any], Log | None]]:
    """Each job: what is said of it (study, job_id, status, error, planned), and its log, if it left one.

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


def _checked(told: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(told[key], str) for key in _JOB) or not isinstance(told["planned"], dict):
        raise TypeError(f"what it says of a job isn't text: {str(told)[:80]}")
    return told


def _read_columns(file: Group) -> Iterator[tuple[dict[str, Any], Log | None]]:
    told = {key: _texts(file.group("jobs"), key) for key in (*_JOB, "planned")}
    logged = _numbers(file.group("jobs"), "logged").astype(bool)
    tables = {name: _Table(file.group(name), name, len(logged)) for name in TABLES if name in file.groups}
    absent = {name: columns.empty(name) for name in TABLES if name not in file.groups}  # of before that table
    attributes = _attributes(file.group("attributes"), len(logged))
    if any(len(values) != len(logged) for values in told.values()):
        raise ValueError("the columns of its 'jobs' differ in length")
    for job in range(len(logged)):
        log = None
        if logged[job]:
            header = {key: value for key, value in attributes[job]["header"].items() if key in _HEADER}
            rest = {name: attributes[job].get(name, {}) for name in ATTRIBUTES}
            rows = absent | {name: table.of(job) for name, table in tables.items()}
            log = Log(timing_log.header_of(header), rows, rest)
        said = {key: values[job] for key, values in told.items()}
        yield _checked(said | {"planned": json.loads(said["planned"])}), log


_HEADER = {each.name for each in fields(Header)}


class _Table:
    """One table of all jobs, from which each job's rows are cut."""

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
        _check_places(self._whole[TEXTS[name]], self._words, name)

    def of(self, job: int) -> columns.Rows:
        start, end = self._starts[job], self._starts[job + 1]
        return columns.rows_of(self._name, self._whole[:, start:end], self._floats[:, start:end], self._words)


def _attributes(group: Group, jobs: int) -> list[dict[str, dict[str, Any]]]:
    found: list[dict[str, dict[str, Any]]] = [{} for _ in range(jobs)]
    told = _numbers(group, "job")
    if len(told) and (told.min() < 0 or told.max() >= jobs):
        raise ValueError("its attributes belong to no jobs")
    texts = [_texts(group, column) for column in ("group", "key", "value")]
    values = {text: timing_log.plain_fact(json.loads(text)) for text in set(texts[-1])}
    for job, name, key, value in zip(told.tolist(), *texts, strict=True):
        found[job].setdefault(name, {})[key] = values[value]
    return found


def _texts(group: Group, column: str) -> list[str]:
    words, places = group.values(f"{column}_values", "str"), _numbers(group, column)
    _check_places(places, words, column)
    return [words[place] for place in places.tolist()]


def _check_places(places: NDArray[Any], words: Sequence[str], name: str) -> None:
    if places.size and (places.min() < 0 or places.max() >= len(words)):
        raise ValueError(f"a text of its {name!r} is in no list")


def _numbers(group: Group, column: str, length: int | None = None, kind: str = "int") -> NDArray[Any]:
    values: NDArray[Any] = group.values(column, kind)
    if length not in {None, len(values)}:
        raise ValueError(f"its column {column!r} is of another length than others")
    return values


def write(file: h5py.File, jobs: Sequence[dict[str, Any]], logs: Sequence[Log | None]) -> None:
    """Write jobs, each as `read` gives it, and their logs into an open, empty file."""
    file.attrs["schema"], file.attrs["schema_version"] = SCHEMA, VERSION
    group = _table(file, "jobs", len(jobs))
    for key in _JOB:
        # An error may name any path: bytes that are no UTF-8 too.
        _write_texts(group, key, [job[key].encode("utf-8", "backslashreplace").decode() for job in jobs], "jobs")
    _write_texts(group, "planned", [json.dumps(job["planned"], sort_keys=True) for job in jobs], "jobs")
    _write_column(group, "logged", np.array([log is not None for log in logs], "i1"), "jobs")
    said = [
        (number, name, key, json.dumps(value))
        for number, log in enumerate(logs)
        if log is not None
        for name, facts in (("header", log.header_facts()), *sorted(log.attributes.items()))
        for key, value in sorted(facts.items())
    ]
    group = _table(file, "attributes", len(said))
    _write_column(group, "job", np.array([row[0] for row in said], np.int32), "attributes")
    for place, column in enumerate(("group", "key", "value"), 1):
        _write_texts(group, column, [str(row[place]) for row in said], "attributes")
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
    about = {each.name: each.metadata for each in fields(TABLES[name])}
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
    place = {word: number for number, word in enumerate(words)}
    _write_column(group, column, np.array([place[text] for text in texts], np.int32), name)
    values = group.create_dataset(f"{column}_values", data=words, shape=(len(words),), dtype=h5py.string_dtype())
    values.make_scale(f"{column}_values")
