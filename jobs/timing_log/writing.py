"""A job's log in memory, and how it is written: whole, into a new file that takes the old one's name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5p, h5s, h5t
from numpy.typing import NDArray

from jobs.timing_log import progress
from jobs.timing_log.loop_rows import Block, LoopSave, Step
from jobs.timing_log.progress import Progress
from jobs.timing_log.schema import (
    ATTRIBUTES,
    OPTIONAL_TABLES,
    SCHEMA,
    SCHEMA_VERSION,
    TABLES,
    Ceiling,
    DiskUse,
    Header,
    Hook,
    Metadata,
    Rank,
    Sample,
)
from jobs.timing_log.seal import sealed

_LONGEST_TEXT_BYTES = 60_000
"""An attribute in HDF5's classic format has at most 64 KiB, and a cluster may have a thousand mounts."""

_STORED = {"str": h5py.string_dtype(), "bool": "i1", "int": "<i8", "float": "<f8"}
"""The types of columns."""

_CREATION = h5p.create(h5p.DATASET_CREATE)
_CREATION.set_obj_track_times(False)  # the same rows give the same bytes

_TEXT, _ONE = h5t.py_create(h5py.string_dtype(), logical=True), h5s.create(h5s.SCALAR)
"""HDF5's types of an attribute that is one text."""

_DIMENSIONS = {"samples": "sample", "disk": "disk_trial"}
"""The dimension scales that aren't called after their table."""


def write_atomically(path: Path, content: bytes | str, *, sync: bool, mode: int | None = None) -> None:
    """Write a file as `ckpt.disk.durable.write_atomically` does, which only those import that write."""
    from ckpt.disk import durable  # imports pydantic, which a laptop that reads logs needs not have

    durable.write_atomically(path, content, sync=sync, mode=mode)


@dataclass(slots=True, kw_only=True)
class TimingLog:
    """One job's log, in memory."""

    header: Header
    samples: list[Sample] = field(default_factory=list)
    disk: list[DiskUse] = field(default_factory=list)
    ceiling: list[Ceiling] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    metadata: list[Metadata] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    saves: list[LoopSave] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    storage: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the whole log as a new file, sync it, and rename it over the old one.

        A job killed at any instant so leaves a log that opens and holds every finished trial.

        Raises:
            OSError: if the file can't be written; the old log is untouched then.
        """
        write_atomically(path, self._image(path.name), sync=True, mode=0o644)

    def _image(self, name: str) -> bytes:
        """The bytes of the file. HDF5 kills the process on a full disk, so it writes to memory only."""
        with h5py.File(name, "w", driver="core", backing_store=False) as file:
            self.write_to(file)
            file.flush()
            return sealed(file.id.get_file_image(), progress.note(self.progress()))

    def end_s(self) -> float:
        """Return the last time in the log, since its clock's zero."""
        tables = self.samples, self.ceiling, self.metadata, self.hooks, self.blocks, self.steps
        ends_s = (row.start_s + row.duration_s for rows in tables for row in rows)
        return max((end_s for end_s in ends_s if math.isfinite(end_s)), default=0.0)

    def progress(self) -> Progress:
        """How far the job is."""
        return progress.of(self.header, self.samples, self.blocks, self.saves, self.provenance)

    def write_to(self, group: h5py.Group) -> None:
        """Write the log into an open, empty group."""
        group.attrs["schema"] = SCHEMA
        group.attrs["schema_version"] = SCHEMA_VERSION
        for key, value in asdict(self.header).items():
            group.attrs[key] = _storable(value)
        for name, row in TABLES.items():
            rows = getattr(self, name)
            if (
                rows or name not in OPTIONAL_TABLES
            ):  # most logs lack these, and analysis opens every column of thousands
                _write_rows(group.create_group(name), _DIMENSIONS.get(name, f"{name}_row"), row, rows)
        for name in ATTRIBUTES:
            attributes = group.create_group(name).attrs
            for key, value in getattr(self, name).items():
                attributes[key] = _storable(value)


def _write_rows(group: h5py.Group, dimension: str, row: type, rows: list[Any]) -> None:
    """Write records as one 1-D dataset per field, all on one dimension scale."""
    scale = _write_column(group, dimension, np.arange(len(rows), dtype="<i8"))
    h5ds.set_scale(scale, dimension.encode())
    _describe(scale, units="1", long_name=f"number of the {dimension.replace('_', ' ')} in this log")
    for attribute in fields(row):
        values = [_storable(getattr(record, attribute.name)) for record in rows]
        column = _write_column(group, attribute.name, np.array(values, _STORED[str(attribute.type)]))
        if attribute.type == "bool":  # HDF5 has none; this attribute is how xarray writes and knows them
            _describe(column, dtype="bool")
        _describe(column, units=attribute.metadata["units"], long_name=attribute.metadata["long_name"])
        h5ds.attach_scale(column, scale, 0)


def _write_column(group: h5py.Group, name: str, values: NDArray[Any]) -> Any:
    """Write a 1-D dataset; h5py's own `create_dataset` and `attrs` would make a log take half as long again."""
    stored, rows = h5t.py_create(values.dtype, logical=True), h5s.create_simple(values.shape)
    column = h5d.create(group.id, name.encode(), stored, rows, _CREATION)
    column.write(h5s.ALL, h5s.ALL, values)
    return column


def _describe(dataset: Any, **texts: str) -> None:
    """Set texts as attributes of a low-level dataset."""
    for name, text in texts.items():
        h5a.create(dataset, name.encode(), _TEXT, _ONE).write(np.array(text, h5py.string_dtype()))


def _storable(value: Any) -> Any:
    """Text as HDF5 can hold it: without NUL and bytes that are no UTF-8, and no longer than an attribute may be."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text.encode()) > _LONGEST_TEXT_BYTES:
        kept = text.encode()[:_LONGEST_TEXT_BYTES].decode(errors="ignore")
        return f"{kept} ... (cut: {len(text.encode())} bytes)"
    return text
