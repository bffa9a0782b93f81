"""How a timing log is read: the file is checked before HDF5 sees it, and its content as it is taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import h5py

from jobs.errors import TimingLogError
from jobs.timing_log.file_checks import LOG, Bounds, check_texts, read_file
from jobs.timing_log.objects import Group, checked
from jobs.timing_log.progress import Progress
from jobs.timing_log.schema import ATTRIBUTES, LATER_TABLES, SCHEMA, SCHEMA_VERSION, TABLES, Header
from jobs.timing_log.seal import check_seal, note_of
from jobs.timing_log.writing import TimingLog


@dataclass(frozen=True, slots=True)
class LogColumns:
    """One job's log by column.

    Attributes:
        header: the attributes of the root group.
        tables: for each of `TABLES` its columns: an array of int64, float64 or bool, or a list: of texts, or of the
            default of a column that the log lacks.
        attributes: for each of `ATTRIBUTES` its attributes.
    """

    header: Header
    tables: dict[str, dict[str, Any]]
    attributes: dict[str, dict[str, Any]]


@contextmanager
def opened(path: Path, bounds: Bounds = LOG) -> Iterator[Group]:
    """The root group of a log or a merged file that is whole and holds only what our writers put into one.

    Raises:
        TimingLogError: if it isn't; also for what HDF5 and Python report of its content in the `with` block.
    """
    where = str(path)
    try:
        content = read_file(path)
        check_seal(content, where)
        file = _as_hdf5(content)
        try:
            check_texts(content, where, bounds)
            yield checked(file, content, where, bounds)
        finally:
            file.close()
    except FileNotFoundError:
        raise TimingLogError(f"{path}: no such timing log") from None
    except OSError as error:
        raise TimingLogError(f"{path} can't be read as HDF5 ({_one_line(error)})") from error
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise TimingLogError(f"{path} is a damaged timing log: {_one_line(error)}") from error


def _as_hdf5(content: bytes) -> Any:
    """HDF5's handle of a file in memory."""
    try:
        return h5py.h5f.open_file_image(content)
    except ValueError:
        raise OSError("it is another kind of file, or damaged") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read(path: Path) -> TimingLog:
    """Read one job's log.

    Raises:
        TimingLogError: if the file can't be opened, is no timing log, has an unknown version, or holds what ours don't.
    """
    log = read_columns(path)
    tables: dict[str, Any] = {name: _records(log.tables[name], row) for name, row in TABLES.items()}
    return TimingLog(header=log.header, **tables | log.attributes)


def _records(columns: dict[str, Any], row: type) -> list[Any]:
    values = [column if isinstance(column, list) else column.tolist() for column in columns.values()]
    return [row(**dict(zip(columns, record, strict=True))) for record in zip(*values, strict=True)]


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


def read_columns(path: Path) -> LogColumns:
    """Read one job's log by column: making records takes most of the time where there are thousands of logs.

    Raises:
        TimingLogError: as `read`.
    """
    with opened(path) as file:
        return columns_of(file, str(path))


def columns_of(group: Group, where: str) -> LogColumns:
    """The log in a group of an open file.

    Args:
        group: that holds the log.
        where: the group, for messages.

    Raises:
        TimingLogError: if the group holds no timing log, or one of an unknown version.
    """
    facts = group.attributes
    schema, version = facts.get("schema"), facts.get("schema_version")
    if schema != SCHEMA:
        raise TimingLogError(f"{where} is no timing log: its attribute 'schema' is {schema!r}, expected {SCHEMA!r}")
    if version != SCHEMA_VERSION:
        raise TimingLogError(
            f"{where} has version {version!r} of the timing log, and version {SCHEMA_VERSION} is known here: "
            "use the release of this package that wrote it, or a later one"
        )
    try:
        return LogColumns(
            header_of({f.name: facts[f.name] for f in fields(Header) if f.name in facts or f.default is MISSING}),
            {name: _table(group, name) for name in TABLES},
            {name: _attributes(group.group(name)) for name in ATTRIBUTES},
        )
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TimingLogError(f"{where} is a damaged timing log: {_one_line(error)}") from error


def _table(file: Group, name: str) -> dict[str, Any]:
    """A table's columns, those that an older log lacks at their default."""
    columns = fields(TABLES[name])
    if name not in file.groups and name in LATER_TABLES:
        return {column.name: [] for column in columns}
    group = file.group(name)
    table = {
        column.name: group.values(column.name, str(column.type))
        for column in columns
        if column.name in group.columns or column.default is MISSING
    }
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        raise ValueError(f"the columns of its {name!r} differ in length")
    length = lengths.pop()
    return {column.name: table.get(column.name, [column.default] * length) for column in columns}


def _attributes(group: Group) -> dict[str, Any]:
    return {name: plain_fact(value) for name, value in sorted(group.attributes.items())}


def header_of(facts: dict[str, Any]) -> Header:
    """A header from what a file says.

    Raises:
        TypeError: if a value is missing, or isn't what its field holds.
    """
    for field in fields(Header):
        value = facts.get(field.name)
        if field.name in facts and type(value) not in _HEADER_TYPES[str(field.type)]:
            raise TypeError(f"its attribute {field.name!r} is {str(value)[:80]!a}, and no {field.type}")
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
