"""The timing log: the HDF5 file that a job leaves. Schema, writer and reader; imports neither torch nor submitit.

    /            attributes of the job (`Header`)
    /samples     one row per measured phase of a trial on a rank (`Sample`), one dataset per column
    /disk        one row per trial: what the checkpoint took on disk (`DiskUse`)
    /ceiling     what the target did by itself before the first trial and after the last (`Ceiling`)
    /ranks       one row per process of the job (`Rank`): where it ran, how well its clock is known
    /state, /storage, /provenance    attributes: what was saved, where, by what

Every column has `units` and `long_name`, and lies on a dimension scale, so that h5py, xarray and h5dump read it.
The format's history:
    1  first version; columns came later: a load without a load_number gets the one that analysis derives
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jobs import progress
from jobs.errors import TimingLogError
from jobs.own_hdf5 import LOG, Bounds, check_kind, check_objects, check_texts, read_file
from jobs.progress import Progress
from jobs.seal import check_seal, note_of, sealed

SCHEMA = "ckpt-timing-log"
SCHEMA_VERSION = 1

RUNNING, COMPLETE, FAILED, INTERRUPTED, SKIPPED = "running", "complete", "failed", "interrupted", "skipped"
"""The values of a log's `status`. A job is skipped where an optional library is missing; its error says which."""

GOOD = frozenset({COMPLETE, SKIPPED})
"""Those of a job that did what it could."""

NOT_APPLICABLE = "n/a"

_LONGEST_TEXT_BYTES = 60_000
"""An attribute in HDF5's classic format has at most 64 KiB, and a cluster may have a thousand mounts."""


def _column(units: str, long_name: str, default: Any = MISSING) -> Any:
    """A column; one that came later than the first version has a default, for logs that lack it."""
    return field(default=default, metadata={"units": units, "long_name": long_name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured phase of one trial on one rank."""

    trial: int = _column("1", "number of the trial in its job, from 0")
    warmup: bool = _column("1", "whether the trial only warms up; kept, but left out of every statistic")
    rank: int = _column("1", "rank that measured it, from 0")
    operation: str = _column("1", "save or load")
    phase: str = _column("1", "call, sync, commit or total")
    start_s: float = _column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = _column("s", "duration, by a monotonic clock")
    state_bytes: int = _column("byte", "logical size of this rank's share of the state")
    durability: str = _column("1", "what is safe when the phase ends: returned, synced or committed")
    cache: str = _column("1", "page cache before a load: cold (proven), cold-unproven or warm")
    resident_fraction: float = _column("1", "share of the checkpoint's pages in the page cache before a load")
    cpu_s: float = _column("s", "CPU time of the process, user and system, of a total; NaN for a part")
    peak_rss_bytes: int = _column("byte", "largest resident set during a total; -1 for a part")
    valid: bool = _column("1", "whether the sample may be used")
    reason: str = _column("1", "why it may not; empty where it may")
    user_s: float = _column("s", "CPU time in user mode, of a total", default=math.nan)
    system_s: float = _column("s", "CPU time in the kernel, of a total", default=math.nan)
    peak_extra_bytes: int = _column("byte", "largest resident set above what was resident before", default=-1)
    device_read_bytes: int = _column("byte", "bytes that the process had fetched from storage", default=-1)
    device_write_bytes: int = _column("byte", "bytes that the process caused to be sent to storage", default=-1)
    read_calls: int = _column("1", "read system calls", default=-1)
    write_calls: int = _column("1", "write system calls", default=-1)
    minor_faults: int = _column("1", "page faults without I/O", default=-1)
    major_faults: int = _column("1", "page faults with I/O", default=-1)
    dirty_pages: int = _column("1", "pages of a saved checkpoint not yet on storage; -1 unknown", default=-1)
    load_number: int = _column("1", "which load of its trial: 0 cold, 1 warm; -1 for a save", default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """What a trial's checkpoint took on disk."""

    trial: int = _column("1", "number of the trial in its job, from 0")
    file_count: int = _column("1", "regular files")
    apparent_bytes: int = _column("byte", "sum of the files' sizes")
    allocated_bytes: int = _column("byte", "blocks that the filesystem took for them")
    small_file_count: int = _column("1", "files under 1 MiB")
    largest_file_bytes: int = _column("byte", "size of the largest file")
    directory_count: int = _column("1", "directories, the checkpoint's own included; -1 unknown", default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the target, or the memory, did by itself, in the same job."""

    when: str = _column("1", "before the first trial or after the last")
    operation: str = _column("1", "write, read or copy (of memory)")
    size_bytes: int = _column("byte", "bytes moved")
    start_s: float = _column("s", "start, since the job's clock_zero_unix_s")
    duration_s: float = _column("s", "duration; a write until it was synced")
    direct: bool = _column("1", "whether it went past the page cache; not, where the filesystem refuses")
    rank: int = _column("1", "rank that measured it, at the same time as all others", default=0)
    buffered: bool = _column("1", "whether it was meant to go through the page cache", default=False)
    resident_fraction: float = _column(
        "1", "share of the file's pages in the page cache before a read", default=math.nan
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process of the job."""

    rank: int = _column("1", "its number, from 0; the samples' `rank`")
    host: str = _column("1", "where it ran")
    node: int = _column("1", "number of its node in the job, from 0")
    process_id: int = _column("1", "its number on its node")
    clock_uncertainty_s: float = _column("s", "how far its clock may be from the first rank's, at most")


@dataclass(slots=True, kw_only=True)
class Header:
    """The attributes of the root group."""

    study: str
    job_id: str
    strategy: str
    label: str
    """The strategy with the options that aren't at their default."""
    strategy_options: str
    """JSON."""
    strategy_facts: str
    """JSON: what the strategy says of itself (`ckpt.strategy.Facts`)."""
    target: str
    round: int
    nodes: int
    tasks_per_node: int
    trials_planned: int
    """Valid trials that the study asks for, without warm-ups."""
    created_utc: str
    clock_zero_unix_s: float
    """Seconds since 1970 at the zero of every `start_s`."""
    status: str = RUNNING
    error: str = ""
    load_ranks: int = 0
    """How many ranks load, where that isn't how many save; 0 where it is."""
    read_shift: int = 0
    """How many nodes away from itself a rank's share was written that it loads."""


@dataclass(slots=True, kw_only=True)
class TimingLog:
    """One job's log, in memory."""

    header: Header
    samples: list[Sample] = field(default_factory=list)
    disk: list[DiskUse] = field(default_factory=list)
    ceiling: list[Ceiling] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the whole log as a new file, sync it, and rename it over the old one.

        A job killed at any instant so leaves a log that opens and holds every finished trial.

        Raises:
            OSError: if the file can't be written; the old log is untouched then.
        """
        image = self._image(path.name)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, no path
                file.write(image)
                file.flush()
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _image(self, name: str) -> bytes:
        """The bytes of the file. HDF5 kills the process on a full disk, so it writes to memory only."""
        with h5py.File(name, "w", driver="core", backing_store=False) as file:
            self.write_to(file)
            file.flush()
            return sealed(file.id.get_file_image(), progress.note(progress.of(self)))

    def write_to(self, group: h5py.Group) -> None:
        """Write the log into an open, empty group."""
        group.attrs["schema"] = SCHEMA
        group.attrs["schema_version"] = SCHEMA_VERSION
        for key, value in asdict(self.header).items():
            group.attrs[key] = _storable(value)
        _write_rows(group.create_group("samples"), "sample", Sample, self.samples)
        _write_rows(group.create_group("disk"), "disk_trial", DiskUse, self.disk)
        _write_rows(group.create_group("ceiling"), "ceiling_row", Ceiling, self.ceiling)
        _write_rows(group.create_group("ranks"), "ranks_row", Rank, self.ranks)
        for name in ("state", "storage", "provenance"):
            attributes = group.create_group(name).attrs
            for key, value in getattr(self, name).items():
                attributes[key] = _storable(value)


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


def _write_rows(group: h5py.Group, dimension: str, row: type, rows: list[Any]) -> None:
    """Write records as one 1-D dataset per field, all on one dimension scale."""
    scale = group.create_dataset(dimension, data=np.arange(len(rows), dtype="<i8"))
    scale.make_scale(dimension)
    scale.attrs["units"] = "1"
    scale.attrs["long_name"] = f"number of the {dimension.replace('_', ' ')} in this log"
    for each in fields(row):
        values = [_storable(getattr(record, each.name)) for record in rows]
        if each.type == "str":
            column = group.create_dataset(each.name, data=values, shape=(len(rows),), dtype=h5py.string_dtype())
        elif each.type == "bool":
            # HDF5 has no booleans; this attribute is how xarray writes and knows them.
            column = group.create_dataset(each.name, data=np.array(values, dtype="i1"))
            column.attrs["dtype"] = "bool"
        else:
            numbers = np.array(values, dtype="<i8" if each.type == "int" else "<f8")
            column = group.create_dataset(each.name, data=numbers)
        column.attrs["units"] = each.metadata["units"]
        column.attrs["long_name"] = each.metadata["long_name"]
        column.dims[0].attach_scale(scale)


def _storable(value: Any) -> Any:
    """Text as HDF5 can hold it: without NUL and bytes that are no UTF-8, and no longer than an attribute may be."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text.encode()) > _LONGEST_TEXT_BYTES:
        kept = text.encode()[:_LONGEST_TEXT_BYTES].decode(errors="ignore")
        return f"{kept} ... (cut: {len(text.encode())} bytes)"
    return text


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
    return progress.of(read(path))


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
