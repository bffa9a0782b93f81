"""Whether an HDF5 file from elsewhere holds only what our writers put into one; known before any of its data is read.

HDF5 follows links into other files, reads a dataset's bytes from any file that it names, loads plugins for filters,
and takes the memory that a file claims to need. A log has none of that, so that whoever made it, and sealed it, can
neither show other files' contents nor stop the reader.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from jobs.errors import TimingLogError


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a kind of file holds at the most."""

    rows: int
    """Of a table."""
    text_bytes: int
    """Of one text."""
    packed: bool
    """Whether columns may lie in chunks that are shuffled and deflated."""


LOG = Bounds(rows=1_000_000, text_bytes=1 << 16, packed=False)
"""A timing log: 17 trials of 10,000 ranks."""

MERGED = Bounds(rows=4_000_000, text_bytes=1 << 20, packed=True)
"""A merged file: 40,000 logs of 100 samples."""

LARGEST_FILE_BYTES = 1 << 30
FILE_OPERATIONS = 8
"""System calls of `read_file`: open, status (3), position, content, its end, close."""
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

_COLLECTION = b"GCOL\x01\0\0\0"
"""How a collection of texts begins, with its version; no text of ours holds a NUL."""
_COLLECTION_HEADER_BYTES = _OBJECT_HEADER_BYTES = 16
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""How a text stands in its column: where it lies in a collection."""


def read_file(path: Path) -> bytes:
    """A file's content, once: another job may put a new log under the name at any time.

    Raises:
        TimingLogError: if it is no regular file, or too large for one of ours.
        OSError: if it is a directory, or can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe doesn't wait for its other end
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # a descriptor, no path; a directory is refused
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TimingLogError(f"{path} is no regular file: expected a timing log or a merged file")
        if status.st_size > LARGEST_FILE_BYTES:
            raise TimingLogError(
                f"{path} has {status.st_size:,} bytes, and {LARGEST_FILE_BYTES:,} are the most that are read of a log "
                "or a merged file: is it one?"
            )
        return file.read()


def check_texts(content: bytes, where: str, bounds: Bounds) -> None:
    """Make sure that HDF5 can walk through a file's texts: HDF5 2.0 walks for ever where one says it takes no room.

    Args:
        content: of the whole file.
        where: the file, for messages.
        bounds: of that kind of file.

    Raises:
        TimingLogError: if it can't, or one is too long for ours.
    """
    place = content.find(_COLLECTION)
    while place >= 0:
        _check_collection(content, place, where, bounds)
        place = content.find(_COLLECTION, place + len(_COLLECTION))


def _check_collection(content: bytes, start: int, where: str, bounds: Bounds) -> None:
    """Walk through a collection of texts as HDF5 does."""
    end = start + int.from_bytes(content[start + 8 : start + 16], "little")
    place = start + _COLLECTION_HEADER_BYTES
    while place + _OBJECT_HEADER_BYTES <= end <= len(content):
        number = int.from_bytes(content[place : place + 2], "little")
        size = int.from_bytes(content[place + 8 : place + 16], "little")
        room = size if number == 0 else _OBJECT_HEADER_BYTES + -(-size // 8) * 8  # number 0 is what is free
        if room < _OBJECT_HEADER_BYTES or place + room > end:
            break
        if number and size > bounds.text_bytes:
            raise TimingLogError(f"{where} holds a text of {size:,} bytes, and ours have at most {bounds.text_bytes:,}")
        place += room
    else:
        if place <= end <= len(content):
            return
    raise TimingLogError(f"{where} is damaged: its texts at byte {start} don't end where they should")


def check_objects(file: Any, content: bytes, where: str, bounds: Bounds) -> None:
    """Make sure that all that lies in a file is ours by its kind, and no larger than it can be.

    Args:
        file: h5py's low-level file, open from `content`.
        content: of the whole file.
        where: the file, for messages.
        bounds: of that kind of file.

    Raises:
        TimingLogError: naming the first object that isn't.
    """
    _Walk(where, bounds, content).group(h5g.open(file, b"/"), "/", 0)


def check_kind(dataset: Any, kind: str, name: str) -> None:
    """Make sure that a column, open by h5py's low-level calls, holds what its format says: str, float, int or bool.

    Raises:
        ValueError: if it doesn't.
    """
    if not isinstance(dataset.get_type(), _KINDS[kind]):
        raise ValueError(f"its column {name!r} holds no {kind}")  # noqa: TRY004  # of the file, not of an argument


class _Walk:
    """One pass over a file's objects."""

    def __init__(self, where: str, bounds: Bounds, content: bytes) -> None:
        self._where, self._bounds, self._content = where, bounds, content
        self._seen: set[int] = set()

    def _refuse(self, name: str, problem: str) -> TimingLogError:
        return TimingLogError(f"{self._where} is refused: its {name!a} {problem}")

    def group(self, group: Any, name: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise self._refuse(name, f"lies more than {_DEEPEST} groups deep")
        self._check_attributes(group, name)
        links: list[tuple[bytes, int, int]] = []
        group.links.iterate(lambda link, info: links.append((link, info.type, info.u)), info=True)
        for link, kind, address in links:
            below = f"{name.rstrip('/')}/{link.decode('utf-8', 'backslashreplace')}"
            if kind != h5l.TYPE_HARD:
                raise self._refuse(below, "is a link to elsewhere, and logs hold none: it may show another file")
            if address in self._seen:
                raise self._refuse(below, "has another name as well, and a log's objects have one")
            self._seen.add(address)
            found = h5o.open(group, link)
            if isinstance(found, h5g.GroupID):
                self.group(found, below, depth + 1)
            elif isinstance(found, h5d.DatasetID):
                self._check_dataset(found, below)
            else:
                raise self._refuse(below, "is a named type, and logs hold none")

    def _check_attributes(self, group: Any, name: str) -> None:
        names: list[bytes] = []
        if h5a.get_num_attrs(group) > _MOST_ATTRIBUTES:
            raise self._refuse(name, f"has more than {_MOST_ATTRIBUTES} attributes")
        h5a.iterate(group, names.append)
        for each in names:
            attribute = h5a.open(group, each)
            called = f"{name} attribute {each.decode('utf-8', 'backslashreplace')}"
            if not isinstance(attribute.get_type(), _FACTS):
                raise self._refuse(called, "is neither a number nor a text")
            if attribute.get_storage_size() > _LARGEST_FACTS_BYTES:
                raise self._refuse(called, f"has more than {_LARGEST_FACTS_BYTES:,} bytes")

    def _check_dataset(self, dataset: Any, name: str) -> None:
        kind, space, plan = dataset.get_type(), dataset.get_space(), dataset.get_create_plist()
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
                self._check_text(dataset, name, size_bytes)

    def _check_extent(self, dataset: Any, name: str, size_bytes: int) -> None:
        offset = dataset.get_offset()
        if offset is None or dataset.get_storage_size() != size_bytes or offset + size_bytes > len(self._content):
            raise self._refuse(name, f"claims {size_bytes:,} bytes that the file doesn't hold")

    def _check_text(self, dataset: Any, name: str, size_bytes: int) -> None:
        """Many rows may refer to one long text, and each of them would take its memory."""
        rows = size_bytes // _REFERENCE.itemsize
        references = np.frombuffer(self._content, _REFERENCE, count=rows, offset=dataset.get_offset())
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
