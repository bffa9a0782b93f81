"""Changes that someone who means harm makes in a log or a merged file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

SECRET = "-----BEGIN PRIVATE KEY-----"

PACKED: dict[str, Any] = {"shuffle": True, "compression": 1}

TEXT = h5py.string_dtype()


def replaced(group: h5py.Group, name: str, **keywords: Any) -> h5py.Dataset:
    """Put another dataset in a column's place."""
    del group[name]
    return group.create_dataset(name, **keywords)


def external_link(file: h5py.File, other: Path) -> None:
    """A column that is another file's."""
    del file["samples/duration_s"]
    file["samples/duration_s"] = h5py.ExternalLink(other, "/samples/cpu_s")


def external_group(file: h5py.File, other: Path) -> None:
    """A group that is another file's."""
    del file["state"]
    file["state"] = h5py.ExternalLink(other, "/state")


def soft_link(file: h5py.File, _: Path) -> None:
    """A column under another name."""
    del file["samples/duration_s"]
    file["samples/duration_s"] = h5py.SoftLink("/samples/cpu_s")


def external_storage(file: h5py.File, other: Path) -> None:
    """A column whose bytes lie in a text file."""
    other.write_text(SECRET)
    replaced(file["samples"], "reason", shape=(1,), dtype=f"S{len(SECRET)}", external=[(other, 0, len(SECRET))])


def external_numbers(file: h5py.File, other: Path) -> None:
    """A column of our numbers' type and length whose bytes lie in another file."""
    length = len(file["samples/trial"])
    replaced(file["samples"], "duration_s", shape=(length,), dtype="<f8", external=[(other, 0, 8 * length)])


def virtual(file: h5py.File, other: Path) -> None:
    """A column that is a view of another file's."""
    layout = h5py.VirtualLayout((3,), "<f8")
    layout[:] = h5py.VirtualSource(other, "samples/cpu_s", (3,))
    del file["samples/duration_s"]
    file["samples"].create_virtual_dataset("duration_s", layout)


def filtered(name: str, dtype: Any = "<f8", **keywords: Any) -> Callable[[h5py.File, Path], None]:
    """A column in chunks, with these keywords."""

    def change(file: h5py.File, _: Path) -> None:
        replaced(file["samples"], name, data=np.ones(len(file["samples/trial"]), dtype), **keywords)

    return change


def plugin_filter(file: h5py.File, _: Path) -> None:
    """A column with a filter that HDF5 would load a plugin for."""
    del file["samples/duration_s"]
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((8,))
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    h5d.create(file["samples"].id, b"duration_s", h5t.IEEE_F64LE, h5s.create_simple((8,)), plan)


def in_place(name: str, data: Any, dtype: Any = None) -> Callable[[h5py.File, Path], None]:
    """A column of other values."""

    def change(file: h5py.File, _: Path) -> None:
        length = len(file["samples/trial"])
        replaced(file["samples"], name, data=data(length), dtype=dtype)

    return change


def references(file: h5py.File, _: Path) -> None:
    """A column of references."""
    values = [file["samples"].ref] * len(file["samples/trial"])
    replaced(file["samples"], "duration_s", data=values, dtype=h5py.ref_dtype)


def named_type(file: h5py.File, _: Path) -> None:
    """A type with a name."""
    file["samples/kind"] = np.dtype("<f8")


def of_a_named_type(file: h5py.File, _: Path) -> None:
    """A column of such a type."""
    file["kind"] = np.dtype("<f8")
    replaced(file["samples"], "duration_s", shape=(len(file["samples/trial"]),), dtype=file["kind"])


def cycle(file: h5py.File, _: Path) -> None:
    """A group that holds itself."""
    file["samples/again"] = file["samples"]


def unallocated(rows: int) -> Callable[[h5py.File, Path], None]:
    """Columns that claim rows, and have no data."""

    def change(file: h5py.File, _: Path) -> None:
        for name in list(file["samples"]):
            kind = file["samples"][name].dtype
            replaced(file["samples"], name, shape=(rows,), dtype=kind)

    return change


def large_chunk(file: h5py.File, _: Path) -> None:
    """A column in one chunk of 1.6 GB."""
    column = replaced(file["samples"], "duration_s", shape=(2 * 10**8,), chunks=(2 * 10**8,), dtype="<f8")
    column.id.set_extent((2 * 10**8,))


def many_attributes(file: h5py.File, _: Path) -> None:
    """More attributes than anybody reads."""
    for number in range(1000):
        file["provenance"].attrs[f"a{number}"] = 1


def long_text(file: h5py.File, _: Path) -> None:
    """A text of a megabyte."""
    file["provenance"].attrs["mounts"] = "x" * 10**6


def attribute(group: str, name: str, value: Any) -> Callable[[h5py.File, Path], None]:
    """An attribute of another value."""

    def change(file: h5py.File, _: Path) -> None:
        file[group].attrs[name] = value

    return change


def without(name: str) -> Callable[[h5py.File, Path], None]:
    """Something is missing."""

    def change(file: h5py.File, _: Path) -> None:
        del file[name]

    return change


def dataset_for_group(file: h5py.File, _: Path) -> None:
    """A dataset in a group's place."""
    del file["state"]
    file["state"] = [1.0]
