"""An HDF5 file's groups and columns, each checked to be of a kind that our writers store before it is read.

HDF5 follows links into other files, reads a dataset's bytes from any file that it names, loads plugins for filters,
and takes the memory that a file claims to need. A log has none of that, so that whoever made it, and sealed it, can
neither show other files' contents nor stop the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z
from numpy.typing import NDArray

from jobs.errors import TimingLogError
from jobs.timing_log.file_checks import Bounds

_MOST_ATTRIBUTES = 500
_DEEPEST = 8
"""Groups in groups: a merged file of the first version has five."""

_PACKED = [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]
_LARGEST_CHUNK_BYTES = 1 << 18
"""h5py chooses a quarter of this for the longest column."""
_LARGEST_RATIO = 1100
"""Deflate makes no more than 1032 bytes of one."""

_KINDS = {"str": h5t.TypeStringID, "float": h5t.TypeFloatID, "int": h5t.TypeIntegerID, "bool": h5t.TypeIntegerID}
_NUMBERS = (h5t.TypeIntegerID, h5t.TypeFloatID)
_FACTS = (*_NUMBERS, h5t.TypeEnumID, h5t.TypeStringID)  # h5py's truth values are an enumeration
_LARGEST_FACTS_BYTES = 1 << 16

_TEXT = h5t.py_create(h5py.string_dtype())
_INT, _FLOAT = (np.int64, h5t.NATIVE_INT64), (np.float64, h5t.NATIVE_DOUBLE)
_MEMORY = {"int": _INT, "bool": _INT, "float": _FLOAT}
_ATTRIBUTE_MEMORY: dict[type, tuple[type, Any]] = {h5t.TypeIntegerID: _INT, h5t.TypeFloatID: _FLOAT}
_STORED = ((h5t.STD_I64LE, np.dtype("<i8")), (h5t.IEEE_F64LE, np.dtype("<f8")), (h5t.STD_I8LE, np.dtype("i1")))
"""The types of numbers that the writer of logs stores."""

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""How a text stands in its column: where it lies in a collection."""


@dataclass(frozen=True, slots=True)
class Column:
    """A checked column of an open file."""

    name: str
    type: type
    """Of HDF5."""
    stored: Any
    """Its numbers, or the open dataset that holds them."""

    def values(self, kind: str) -> Any:
        """The column's values: an array of int64, float64 or bool, or a list of texts.

        Raises:
            ValueError: if the column holds another kind, or a text that isn't UTF-8.
        """
        if not issubclass(self.type, _KINDS[kind]):
            raise ValueError(f"its column {self.name!r} holds no {kind}")  # noqa: TRY004  # the file is wrong, not an argument
        if kind == "str":
            return [text.decode() for text in self._read(object, _TEXT)]
        dtype, memory_type = _MEMORY[kind]
        stored = self.stored if isinstance(self.stored, np.ndarray) else self._read(dtype, memory_type)
        return stored.astype(np.bool if kind == "bool" else dtype)

    def _read(self, dtype: Any, memory_type: Any) -> NDArray[Any]:
        values = np.empty(self.stored.shape, dtype)
        if values.size:
            self.stored.read(h5s.ALL, h5s.ALL, values, memory_type)
        return values


@dataclass(frozen=True, slots=True)
class Group:
    """A checked group of an open file."""

    attributes: dict[str, Any]
    """An int, float, bool or str where HDF5 holds one of these, else any other Python value."""
    columns: dict[str, Column]
    groups: dict[str, Group]

    def group(self, name: str) -> Group:
        """A group in this one.

        Raises:
            ValueError: if there is none of that name.
        """
        if name not in self.groups:
            raise ValueError(f"its {name!r} is no group" if name in self.columns else f"it has no group {name!r}")
        return self.groups[name]

    def values(self, column: str, kind: str) -> Any:
        """A column's values; see `Column.values`.

        Raises:
            ValueError: also if there is no such column.
        """
        if column not in self.columns:
            raise ValueError(f"it has no column {column!r}")
        return self.columns[column].values(kind)


def _value(attribute: Any, kind: Any) -> Any:
    extent = attribute.get_space().get_simple_extent_type()
    if isinstance(kind, h5t.TypeStringID) and kind.is_variable_str():
        if extent != h5s.SCALAR:
            return [None]  # nobody needs its texts, and they may be one long text many times
        text: Any = np.empty((), object)
        attribute.read(text, _TEXT)
        return text.item().decode(errors="surrogateescape")
    if extent == h5s.NULL:
        return h5py.Empty(attribute.dtype)
    dtype, memory_type = _ATTRIBUTE_MEMORY.get(type(kind)) or (attribute.dtype, None)
    values: Any = np.empty(() if extent == h5s.SCALAR else attribute.shape, dtype)
    attribute.read(values, memory_type)
    return values.tolist()


def checked(file: Any, content: bytes, where: str, bounds: Bounds) -> Group:
    """The root group of a file, once everything in the file is known to be of a kind and size that ours have.

    Args:
        file: h5py's low-level file, open from `content`. The group is of use only as long as it is open.
        content: of the whole file.
        where: the file, for messages.
        bounds: of that kind of file.

    Raises:
        TimingLogError: naming the first object that isn't.
    """
    return _Walk(where, bounds, content).group(h5g.open(file, b"/"), "/", 0)


class _Walk:
    """One pass over a file's objects."""

    def __init__(self, where: str, bounds: Bounds, content: bytes) -> None:
        self._where, self._bounds, self._content = where, bounds, content
        self._seen: set[int] = set()

    def _refuse(self, name: str, problem: str) -> TimingLogError:
        return TimingLogError(f"{self._where} is refused: its {name!a} {problem}")

    def group(self, group: Any, name: str, depth: int) -> Group:
        if depth > _DEEPEST:
            raise self._refuse(name, f"lies more than {_DEEPEST} groups deep")
        attributes = self._attributes(group, name)
        links: list[tuple[bytes, int, int]] = []
        group.links.iterate(lambda link, info: links.append((link, info.type, info.u)), info=True)
        groups, columns = {}, {}
        for link, kind, address in links:
            short = link.decode("utf-8", "backslashreplace")
            below = f"{name.rstrip('/')}/{short}"
            if kind != h5l.TYPE_HARD:
                raise self._refuse(below, "is a link to elsewhere, and logs hold none: it may show another file")
            if address in self._seen:
                raise self._refuse(below, "has another name as well, and a log's objects have one")
            self._seen.add(address)
            item = h5o.open(group, link)
            if isinstance(item, h5g.GroupID):
                groups[short] = self.group(item, below, depth + 1)
            elif isinstance(item, h5d.DatasetID):
                columns[short] = self._column(item, below, short)
            else:
                raise self._refuse(below, "is a named type, and logs hold none")
        return Group(attributes, columns, groups)

    def _attributes(self, group: Any, name: str) -> dict[str, Any]:
        if h5a.get_num_attrs(group) > _MOST_ATTRIBUTES:
            raise self._refuse(name, f"has more than {_MOST_ATTRIBUTES} attributes")
        names: list[bytes] = []
        h5a.iterate(group, names.append)  # opening them by number would sort all of them each time
        attributes = {}
        for encoded in names:
            short = encoded.decode("utf-8", "backslashreplace")
            attribute = h5a.open(group, encoded)
            kind = attribute.get_type()
            if not isinstance(kind, _FACTS):
                raise self._refuse(f"{name} attribute {short}", "is neither a number nor a text")
            if attribute.get_storage_size() > _LARGEST_FACTS_BYTES:
                raise self._refuse(f"{name} attribute {short}", f"has more than {_LARGEST_FACTS_BYTES:,} bytes")
            attributes[short] = _value(attribute, kind)
        return attributes

    def _column(self, dataset: Any, name: str, short: str) -> Column:
        kind, space = dataset.get_type(), dataset.get_space()
        numbers = self._numbers(dataset, kind, space)
        if numbers is None:
            self._check_dataset(dataset, kind, space, name)
        return Column(short, type(kind), dataset if numbers is None else numbers)

    def _numbers(self, dataset: Any, kind: Any, space: Any) -> NDArray[Any] | None:
        """A column of numbers in the file's bytes, if it is stored as our writers do.

        It is read without HDF5, so that no filter, view or other file can have a part in it.
        """
        dtype = next((dtype for stored_type, dtype in _STORED if kind.equal(stored_type)), None)
        if dtype is None or space.get_simple_extent_ndims() != 1 or kind.committed():
            return None
        rows = space.get_simple_extent_npoints()
        offset = dataset.get_offset()
        size_bytes = rows * dtype.itemsize
        if offset is None or not 0 < rows <= self._bounds.rows or dataset.get_storage_size() != size_bytes:
            return None
        return np.frombuffer(self._content, dtype, rows, offset) if offset + size_bytes <= len(self._content) else None

    def _check_dataset(self, dataset: Any, kind: Any, space: Any, name: str) -> None:
        plan = dataset.get_create_plist()
        if plan.get_external_count():
            raise self._refuse(name, "is stored in another file")
        layout = plan.get_layout()
        if layout not in ((h5d.CONTIGUOUS, h5d.CHUNKED) if self._bounds.packed else (h5d.CONTIGUOUS,)):
            what = {h5d.VIRTUAL: "is a view of other datasets", h5d.CHUNKED: "lies in chunks"}
            raise self._refuse(name, f"{what.get(layout, 'is stored in another way')}, and our logs' columns don't")
        is_text = isinstance(kind, h5t.TypeStringID) and kind.is_variable_str()
        if not (is_text or (isinstance(kind, _NUMBERS) and kind.get_size() <= 8)) or kind.committed():
            raise self._refuse(name, "is neither a column of numbers nor one of texts")
        # Not the dataset's own `rank` and `shape`: each of them opens the space once more, for fifty columns of a log.
        dimensions = space.get_simple_extent_ndims()
        if space.get_simple_extent_type() != h5s.SIMPLE or dimensions != 1:
            raise self._refuse(name, f"has {dimensions} dimensions, and a column has one")
        (rows,) = space.get_simple_extent_dims()
        if rows > self._bounds.rows:
            raise self._refuse(name, f"claims {rows:,} rows, and {self._bounds.rows:,} are the most that are read")
        size_bytes = rows * (_REFERENCE.itemsize if is_text else kind.get_size())
        if layout == h5d.CHUNKED and not is_text:
            self._check_chunks(dataset, plan, name, size_bytes)
        elif plan.get_nfilters() or layout == h5d.CHUNKED:
            raise self._refuse(name, "is stored in a way that our logs aren't")
        elif rows:
            self._check_extent(dataset, name, size_bytes)
            if is_text:
                self._check_text(dataset, name, rows)

    def _check_extent(self, dataset: Any, name: str, size_bytes: int) -> None:
        offset = dataset.get_offset()
        if offset is None or dataset.get_storage_size() != size_bytes or offset + size_bytes > len(self._content):
            raise self._refuse(name, f"claims {size_bytes:,} bytes that the file doesn't hold")

    def _check_text(self, dataset: Any, name: str, rows: int) -> None:
        """Many rows may refer to one long text, and each of them would take its memory."""
        references = np.frombuffer(self._content, _REFERENCE, rows, dataset.get_offset())
        if int(references["length"].sum(dtype=np.uint64)) > len(self._content):
            raise self._refuse(name, "claims more text than the file holds")

    def _check_chunks(self, dataset: Any, plan: Any, name: str, size_bytes: int) -> None:
        filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        if filters != _PACKED:
            raise self._refuse(name, f"is filtered by {filters}, and our merged files by {_PACKED}")
        chunk_bytes = plan.get_chunk()[0] * dataset.get_type().get_size()
        if chunk_bytes > _LARGEST_CHUNK_BYTES:
            raise self._refuse(name, f"has chunks of {chunk_bytes:,} bytes; {_LARGEST_CHUNK_BYTES:,} are the most")
        stored: list[int] = []
        dataset.chunk_iter(lambda chunk: stored.append(chunk.size))
        # Deflate makes what it can't pack a little longer.
        if max(stored, default=0) > chunk_bytes * 1.01 + 1024 or sum(stored) * _LARGEST_RATIO < size_bytes:
            raise self._refuse(name, f"claims {size_bytes:,} bytes, and what is stored can't be those")
