"""HDF5 through h5py: one file, one dataset per tensor.

Each of several ranks writes such a file, and rank 0 a common one (`ckpt.formats.hdf5_common`), in which any reader of
HDF5 sees whole tensors.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ckpt.formats import filenames, shard_files
from ckpt.formats.chunks import MIB, row_chunks
from ckpt.formats.hdf5_common import ROWS, write_common
from ckpt.formats.hdf5_files import create, import_late, opened, read_dataset
from ckpt.formats.hdf5_links import require_links, require_sources
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, ties
from ckpt.state.layout import Layout, state_bytes
from ckpt.state.sharding import Partition, RankShards, rows_of
from ckpt.strategy import (
    Capabilities,
    Description,
    Footprint,
    Strategy,
    Wanted,
    sum_over_ranks,
)

if TYPE_CHECKING:
    import h5py
    import torch

    from ckpt.state.layout import State

_FILE = "state.h5"
_CHUNK_MIB = 16


@dataclass(frozen=True)
class Hdf5(Strategy):
    """One dataset per tensor; tied ones are links to one.

    A full disk is an error here, and not a crash as in HDF5 alone. HDF5 has checksums of its metadata, not of data.

    Attributes:
        layout: `contiguous`, or `chunked` along the first dimension.
        chunk_mib: the largest size of a chunk, unless a row has more.
    """

    layout: Literal["contiguous", "chunked"] = "contiguous"
    chunk_mib: Annotated[int, Field(ge=1, le=4095)] = _CHUNK_MIB

    name: ClassVar[str] = "hdf5"

    requires: ClassVar[tuple[str, ...]] = ("torch", "h5py", "ml_dtypes")

    @property
    def contradiction(self) -> str:
        """A contiguous dataset has no chunks."""
        if self.layout == "contiguous" and self.chunk_mib != _CHUNK_MIB:
            return "chunk_mib is the size of chunks, and layout = contiguous has none: leave one of them out"
        return ""

    @property
    def capabilities(self) -> Capabilities:
        """Rows can be read from any rank's file."""
        return Capabilities(can_reshard=True)

    def describe(self) -> Description:
        """Describe the file."""
        return Description(
            files="1",
            format="HDF5, one dataset per tensor",
            chunks="none"
            if self.layout == "contiguous"
            else f"along the first dimension, {self.chunk_mib} MiB at most",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state; bfloat16 and float8 as unsigned integers",
            order_of_writes="one tensor at a time",
            other_readers="h5py, HDF5 1.10 and later",
            best_for="Sharing with other sciences",
            ranks="a file for each rank, one that joins them",
        )

    def prepare(self) -> None:
        """Import h5py so that it works until the interpreter ends, and the rest."""
        if importlib.util.find_spec("h5py"):
            import_late()
        super().prepare()

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per rank and, if there are several, the common one, which locates all parts of a tensor."""
        files = sum_over_ranks(partition, self._file_footprint)
        if partition.count == 1:
            return files
        size_bytes = 16384
        for tensor in partition.layout:
            name_bytes = len(json.dumps(tensor.name))
            parts = -(-rows_of(tensor) // partition.rows_per_rank(tensor))
            size_bytes += 2048 + 2 * name_bytes + parts * (256 + name_bytes + 64 * len(tensor.shape))
        return Footprint(files.file_count + 1, files.size_bytes + size_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write this rank's file, and on rank 0 the common one, if there are several ranks."""
        count = shards.partition.count
        path = directory / filenames.of_rank(_FILE, shards.rank, count)
        self._write_file(state, path, {shard.whole.name: shard_files.row_range(shard) for shard in shards.owned})
        if shards.rank or count == 1:
            return [path]
        write_common(directory / _FILE, shards.partition)
        return [path, directory / _FILE]

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read the wanted rows from the ranks' files: the common one would show zeros for a lost file."""
        if stored is None or stored.is_single_read(wanted, group.size):
            return load_file(directory / _FILE, wanted)
        shard_files.require(directory / _FILE)
        shards = stored.shards(wanted)
        parts: dict[str, list[torch.Tensor]] = {}
        for rank, fragments in stored.fragments(shards).items():
            path = directory / filenames.of_rank(_FILE, rank, stored.count)
            with opened(path) as file:
                require_links(file, [filenames.to_filename(fragment.wanted.whole.name) for fragment in fragments], path)
                for fragment in fragments:
                    name = fragment.wanted.whole.name
                    dataset = file[filenames.to_filename(name)]
                    row_range = tuple(map(int, dataset.attrs.get(ROWS, ())))
                    shard_files.compare(path, fragment, dataset.shape, dataset.attrs["dtype"], row_range)
                    rows = () if fragment.is_all else fragment.rows
                    parts.setdefault(name, []).append(read_dataset(dataset, rows))
        return shard_files.join(shards, parts)

    def _file_footprint(self, layout: Layout) -> Footprint:
        """Return the bytes of the state, padding of the last chunks, and HDF5's own."""
        size_bytes = state_bytes(layout) + 16384
        for tensor in layout:
            size_bytes += 2048 + 2 * len(json.dumps(tensor.name))
            chunk = self._chunk_shape(tensor.shape, dtypes.BYTES_PER_ELEMENT[tensor.dtype])
            if chunk:
                chunks = -(-tensor.shape[0] // chunk[0])
                padded = chunks * math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
                size_bytes += padded - tensor.size_bytes + 64 * chunks
        return Footprint(1, size_bytes)

    def _write_file(self, state: State, path: Path, rows: Mapping[str, tuple[int, int] | None]) -> None:
        """Write one dataset after the other; tied tensors are links to one."""
        first: dict[tuple[object, ...], h5py.Dataset] = {}
        with create(path, list(state)) as file:
            for name, tensor in state.items():
                link = filenames.to_filename(name)
                if ties.identity(tensor) in first:
                    file[link] = first[ties.identity(tensor)]
                    continue
                dataset = first[ties.identity(tensor)] = self._write_dataset(file, link, tensor)
                if rows.get(name):
                    dataset.attrs[ROWS] = rows[name]

    def _write_dataset(self, file: h5py.File, link: str, tensor: torch.Tensor) -> h5py.Dataset:
        array, name = dtypes.to_numpy(tensor), dtypes.name_of(tensor)
        chunk = self._chunk_shape(array.shape, array.dtype.itemsize)
        data = array.view(dtypes.AS_UNSIGNED.get(name, array.dtype))
        dataset = file.create_dataset(link, data=data, chunks=chunk)
        dataset.attrs["dtype"] = name
        return dataset

    def _chunk_shape(self, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
        """None for a dataset without chunks."""
        if self.layout == "contiguous" or not shape or 0 in shape:
            return None
        return tuple(row_chunks(shape, itemsize, self.chunk_mib * MIB))


def load_file(path: Path, names: Collection[str] | None = None) -> State:
    """Read the tensors of one file, or of the one that joins those of several ranks.

    Raises:
        CheckpointError: if it is missing or damaged, lacks a name, or would show other files than ours.
    """
    import h5py

    state: State = {}
    read: dict[tuple[int, int], tuple[torch.Tensor, h5py.Dataset]] = {}
    with opened(path) as file:
        chosen = select(json.loads(file.attrs["names"].tobytes()), names, path.parent)
        require_links(file, [filenames.to_filename(name) for name in chosen], path)
        for name in chosen:
            dataset = file[filenames.to_filename(name)]
            where = h5py.h5o.get_info(dataset.id)
            if (where.fileno, where.addr) not in read:
                require_sources(dataset, path.parent)
                read[where.fileno, where.addr] = (
                    read_dataset(dataset),
                    dataset,
                )  # keeps the file open, and so its number
            state[name] = read[where.fileno, where.addr][0]
    return state


def is_ours(path: Path) -> bool:
    """Return whether this package wrote an HDF5 file."""
    with opened(path) as file:
        try:
            names = json.loads(file.attrs["names"].tobytes())
            return all("dtype" in file[filenames.to_filename(name)].attrs for name in names if _is_here(file, name))
        except (LookupError, ValueError, TypeError, AttributeError):
            return False


def _is_here(file: h5py.File, name: str) -> bool:
    import h5py

    return isinstance(file.get(filenames.to_filename(name), getlink=True), h5py.HardLink)
