"""How a timing log is read: the file is checked before HDF5 sees it, and its content as it is taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jobs.errors import TimingLogError
from jobs.timing_log.file_checks import LOG, Bounds, check_kind, check_objects, check_texts, read_file
from jobs.timing_log.progress import Progress
from jobs.timing_log.schema import SCHEMA, SCHEMA_VERSION, Ceiling, DiskUse, Header, Rank, Sample
from jobs.timing_log.seal import check_seal, note_of
from jobs.timing_log.writing import TimingLog


@contextmanager
def opened(path: Path, bounds: Bounds = LOG) -> Iterator[h5py.File]:
    """A log's file, or a merged one, known to be whole and to hold only what our writers put in one.

    Raises:
        TimingLogError: if it isn't; also for whatever HDF5 and Python say of its content in the `with` block.
    """
    where = str(path)
    try:
        content = read_file(path)
        check_seal(content, where)
        with _as_hdf5(content) as file:
            check_texts(content, where, bounds)
            check_objects(file.id, content, where, bounds)
            yield file
    except FileNotFoundError:
        raise TimingLogError(f"{path}: no such timing log") from None
    except OSError as error:
        raise TimingLogError(f"{path} can't be read as HDF5 ({_one_line(error)})") from error
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise TimingLogError(f"{path} is a damaged timing log: {_one_line(error)}") from error


def _as_hdf5(content: bytes) -> h5py.File:
    try:
        return h5py.File(h5py.h5f.open_file_image(content))
    except ValueError:
        raise OSError("it is another kind of file, or damaged") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read(path: Path) -> TimingLog:
    """Read one job's log.

    Raises:
        TimingLogError: if the file can't be opened, is no timing log, has an unknown version, or holds what ours don't.
    """
    with opened(path) as file:
        return read_from(file, str(path))


def read_progress(path: Path) -> Progress:
    """How far the job is: from the note in its log, or from all of it where there is none.

    Raises:
        TimingLogError: as `read`; if HDF5 isn't needed, only for a file that can't be read, or is damaged.
    """
    with contextlib.suppress(OSError):
        content = read_file(path)
        check_seal(content, str(path))
        noted = note_of(content)[1]
        if noted:
            return noted
    return read(path).progress()


def read_from(group: h5py.Group, where: str) -> TimingLog:
    """Read a log from an open group; `where` names it in messages.

    Raises:
        TimingLogError: if the group holds no timing log, or one of an unknown version.
    """
    schema, version = _plain(group.attrs.get("schema")), _plain(group.attrs.get("schema_version"))
    if schema != SCHEMA:
        raise TimingLogError(f"{where} is no timing log: its attribute 'schema' is {schema!r}, expected {SCHEMA!r}")
    if version != SCHEMA_VERSION:
        raise TimingLogError(
            f"{where} has version {version!r} of the timing log, and version {SCHEMA_VERSION} is known here: "
            "use the release of this package that wrote it, or a later one"
        )
    try:
        return TimingLog(
            header=header_of({f.name: _plain(group.attrs[f.name]) for f in fields(Header) if _has(group, f)}),
            samples=_read_rows(group["samples"], Sample),
            disk=_read_rows(group["disk"], DiskUse),
            ceiling=_read_rows(group["ceiling"], Ceiling) if "ceiling" in group else [],
            ranks=_read_rows(group["ranks"], Rank) if "ranks" in group else [],  # not in logs of one process
            **{
                name: {key: plain_fact(_plain(value)) for key, value in sorted(_group(group, name).attrs.items())}
                for name in ("state", "storage", "provenance")
            },
        )
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TimingLogError(f"{where} is a damaged timing log: {_one_line(error)}") from error


def header_of(facts: dict[str, Any]) -> Header:
    """A header from what a file says.

    Raises:
        TypeError: if a value is missing, or isn't what its field holds.
    """
    for each in fields(Header):
        value = facts.get(each.name)
        if each.name in facts and type(value) not in _HEADER_TYPES[str(each.type)]:
            raise TypeError(f"its attribute {each.name!r} is {str(value)[:80]!a}, and no {each.type}")
        plain_fact(value)
    return Header(**facts)


_HEADER_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int)}


def plain_fact(value: Any) -> Any:
    """An attribute's value, if it is a number, a truth value or a text.

    Raises:
        ValueError: if it is anything else, or a text that is no UTF-8.
    """
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"an attribute holds {str(value)[:80]!a}, and neither a number nor a text")  # noqa: TRY004  # see header_of
    if isinstance(value, str):
        value.encode()  # h5py lets bytes that are no UTF-8 through
    return value


def _group(group: h5py.Group, name: str) -> h5py.Group:
    below = group[name]
    if not isinstance(below, h5py.Group):
        raise ValueError(f"its {name!r} is no group")  # noqa: TRY004  # of the file, not of an argument
    return below


def _has(group: h5py.Group, attribute: Field[Any]) -> bool:
    """False for an attribute that came later than a log, and has a default."""
    return attribute.name in group.attrs or attribute.default is MISSING


def _read_rows(group: h5py.Group, row: type) -> list[Any]:
    columns = {}
    for each in fields(row):
        if each.name not in group and each.default is not MISSING:
            continue  # a log of before that column
        dataset = group[each.name]
        check_kind(dataset.id, str(each.type), each.name)
        values = dataset.asstr()[()] if each.type == "str" else dataset[()]
        columns[each.name] = values.astype(bool).tolist() if each.type == "bool" else values.tolist()
    return [row(**dict(zip(columns, record, strict=True))) for record in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    """An attribute as a Python value."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
