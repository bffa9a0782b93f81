"""HDF5 through h5py: one file, one dataset per tensor.

Several ranks write such a file each, and the first one a small file that joins them, so that any reader of HDF5 sees
whole tensors: links to those that lie in one file, virtual datasets of those whose rows lie in several. HDF5 shows
zeros where a part of a virtual dataset is missing, and says nothing; a load here makes sure that all is there.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from ckpt.formats import filenames, shard_files
from ckpt.formats.hdf5_files import create, import_late, opened
from ckpt.formats.hdf5_links import require_links, require_sources
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, memory, ties
from ckpt.state.layout import Layout, TensorLayout, state_bytes
from ckpt.state.sharding import Fragment, Partition, RankShards, Shard, rows_of
from ckpt.strategy import Facts, Footprint, Strategy

if TYPE_CHECKING:
    import h5py
    import torch

    from ckpt.state.layout import State

_FILE = "state.h5"
_MIB = 2**20
_CHUNK_MIB = 16

_AS_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""What HDF5 has no type for."""


@dataclass(frozen=True)
class Hdf5(Strategy):
    """One dataset per tensor; tied ones are links to one.

    A full disk is an error here, which HDF5 alone answers with a crash. Damaged metadata are found by their checksums;
    damaged data are not.

    Attributes:
        layout: `contiguous`, or `chunked` along the first dimension.
        chunk_mib: the most that a chunk has.
    """

    layout: Literal["contiguous", "chunked"] = "contiguous"
    chunk_mib: Annotated[int, Field(ge=1, le=4095)] = _CHUNK_MIB

    requires: ClassVar[tuple[str, ...]] = ("torch", "h5py", "ml_dtypes")

    def prepare(self) -> None:
        """Import h5py with care, and the rest."""
        if importlib.util.find_spec("h5py"):
            import_late()
        super().prepare()

    @property
    def contradiction(self) -> str:
        """A contiguous dataset has no chunks."""
        wrong = self.layout == "contiguous" and self.chunk_mib != _CHUNK_MIB
        return "chunk_mib says how large chunks are, and layout = contiguous has none: leave one of them out" * wrong

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1",
            format="HDF5, one dataset per tensor",
            chunks="none"
            if self.layout == "contiguous"
            else f"along the first dimension, {self.chunk_mib} MiB at most",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state; bfloat16 and float8 as unsigned integers",
            order_of_writes="one tensor at a time",
            synced="no",
            atomic="no",
            checksum="none",
            partial_load="by tensor",
            other_readers="h5py, HDF5 1.10 and later",
            best_for="Sharing with other sciences",
            ranks="a file for each rank, one that joins them",
            resharding="any number of ranks",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """One file: the bytes of the state, the last chunks padded, and HDF5's own."""
        size_bytes = state_bytes(layout) + 16384
        for tensor in layout:
            size_bytes += 2048 + 2 * len(json.dumps(tensor.name))
            chunk = self._chunk_shape(tensor.shape, dtypes.BYTES_PER_ELEMENT[tensor.dtype])
            if chunk:
                chunks = -(-tensor.shape[0] // chunk[0])
                padded = chunks * math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
                size_bytes += padded - tensor.size_bytes + 64 * chunks
        return Footprint(1, size_bytes)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write one dataset after the other."""
        self._save_file(state, directory / _FILE, {})
        return [directory / _FILE]

    def _save_file(self, state: State, path: Path, rows: Mapping[str, tuple[int, int] | None]) -> None:
        first: dict[tuple[object, ...], h5py.Dataset] = {}
        with create(path, list(state)) as file:
            for name, tensor in state.items():
                link = filenames.to_filename(name)
                if ties.identity(tensor) in first:
                    file[link] = first[ties.identity(tensor)]
                    continue
                dataset = first[ties.identity(tensor)] = self._write(file, link, tensor)
                if rows.get(name):
                    dataset.attrs["rows_of_whole"] = rows[name]

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read one dataset after the other."""
        return load_file(directory / _FILE, names)

    def footprint_together(self, partition: Partition) -> Footprint:
        """A file for each rank, and the one that joins them, which says of each part of a tensor where it lies."""
        files = super().footprint_together(partition)
        if partition.count == 1:
            return files
        size_bytes = 16384
        for tensor in partition.layout:
            name_bytes = len(json.dumps(tensor.name))
            parts = -(-rows_of(tensor) // partition.rows_per_rank(tensor))
            size_bytes += 2048 + 2 * name_bytes + parts * (256 + name_bytes + 64 * len(tensor.shape))
        return Footprint(files.file_count + 1, files.size_bytes + size_bytes)

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:  # noqa: ARG002  # nobody is waited for
        """Write a file, and on the first rank the one that joins all."""
        path = directory / _file(part.rank, part.partition.count)
        self._save_file(state, path, {each.whole.name: shard_files.rows_told(each) for each in part.owned})
        if part.rank or part.partition.count == 1:
            return [path]
        _write_joint(directory / _FILE, part.partition)
        return [path, directory / _FILE]

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # as above
        """Read the wanted rows of each rank's file: not through the joint one, where a loss shows as zeros."""
        shard_files.require(directory / _FILE)
        found: dict[str, list[torch.Tensor]] = {}
        for rank, fragments in saved.fragments(part.held).items():
            path = directory / _file(rank, saved.count)
            with opened(path) as file:
                require_links(file, [filenames.to_filename(fragment.wanted.whole.name) for fragment in fragments], path)
                for fragment in fragments:
                    name = fragment.wanted.whole.name
                    dataset = file[filenames.to_filename(name)]
                    told = tuple(map(int, dataset.attrs.get("rows_of_whole", ())))
                    shard_files.compare(path, fragment, dataset.shape, dataset.attrs["dtype"], told)
                    found.setdefault(name, []).append(_read(dataset, () if fragment.is_all else fragment.rows))
        return shard_files.join(part.held, found)

    def _write(self, file: h5py.File, link: str, tensor: torch.Tensor) -> h5py.Dataset:
        array, name = dtypes.to_numpy(tensor), dtypes.name_of(tensor)
        chunk = self._chunk_shape(array.shape, array.dtype.itemsize)
        dataset = file.create_dataset(link, data=array.view(_AS_BITS.get(name, array.dtype)), chunks=chunk)
        dataset.attrs["dtype"] = name
        return dataset

    def _chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> tuple[int, ...] | None:
        """Equal parts of the first dimension; None for a dataset that has no chunks."""
        if self.layout == "contiguous" or not shape or 0 in shape:
            return None
        parts = -(-math.prod(shape) * bytes_per_element // (self.chunk_mib * _MIB))
        return -(-shape[0] // min(parts, shape[0])), *shape[1:]


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
                read[where.fileno, where.addr] = _read(dataset), dataset  # a file that is closed loses its number
            state[name] = read[where.fileno, where.addr][0]
    return state


def is_ours(path: Path) -> bool:
    """Whether this package wrote an HDF5 file."""
    with opened(path) as file:
        try:
            names = json.loads(file.attrs["names"].tobytes())
            return all("dtype" in file[filenames.to_filename(name)].attrs for name in names if _is_here(file, name))
        except (LookupError, ValueError, TypeError, AttributeError):
            return False


def _is_here(file: h5py.File, name: str) -> bool:
    import h5py

    return isinstance(file.get(filenames.to_filename(name), getlink=True), h5py.HardLink)


def _file(rank: int, size: int) -> str:
    return _FILE if size == 1 else f"state-{rank:05d}-of-{size:05d}.h5"


def _write_joint(path: Path, partition: Partition) -> None:
    """Make the file in which every tensor is whole: it follows from the partition."""
    import h5py

    with create(path, [tensor.name for tensor in partition.layout]) as file:
        for tensor, parts in _parts(partition):
            link = filenames.to_filename(tensor.name)
            if parts[0][1].saved.is_whole:
                file[link] = h5py.ExternalLink(parts[0][0], f"/{link}")
            else:
                _write_virtual(file, link, tensor, parts)
        for tensor in partition.layout:
            if tensor.same_as is not None:
                owner = file.get(filenames.to_filename(tensor.same_as), getlink=True)
                link = filenames.to_filename(tensor.name)
                file[link] = (
                    owner if isinstance(owner, h5py.ExternalLink) else file[filenames.to_filename(tensor.same_as)]
                )


def _parts(partition: Partition) -> Iterator[tuple[TensorLayout, list[tuple[str, Fragment]]]]:
    """In which files each tensor lies, and which rows; tensor by tensor where ranks have rows of all."""
    whole = tuple(Shard(tensor, 0, rows_of(tensor)) for tensor in partition.layout if tensor.same_as is None)
    for share in [(each,) for each in whole] if partition.sharding == "dim0" else [whole]:
        found: dict[TensorLayout, list[tuple[str, Fragment]]] = {}
        for rank, fragments in partition.fragments(share).items():
            for fragment in fragments:
                found.setdefault(fragment.wanted.whole, []).append((_file(rank, partition.count), fragment))
        yield from found.items()


def _write_virtual(file: h5py.File, link: str, tensor: TensorLayout, parts: list[tuple[str, Fragment]]) -> None:
    import h5py
    import torch

    array = dtypes.to_numpy(torch.empty(0, dtype=dtypes.torch_dtype(tensor.dtype)))
    dtype = np.dtype(_AS_BITS.get(tensor.dtype, array.dtype))
    if not tensor.elements:
        dataset = file.create_dataset(link, tensor.shape, dtype)
    else:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)  # h5py's VirtualLayout is this, at several times the cost
        space = h5py.h5s.create_simple(tensor.shape)
        source = link.replace("%", "%%").encode()
        for name, fragment in parts:
            held = fragment.saved.layout.shape
            space.select_hyperslab((fragment.saved.start, *(0 for _ in held[1:])), held)
            properties.set_virtual(space, name.encode(), source, h5py.h5s.create_simple(held))
        space.select_all()
        kind = h5py.h5t.py_create(dtype, logical=True)
        dataset = h5py.Dataset(h5py.h5d.create(file.id, link.encode(), kind, space, properties))
    dataset.attrs["dtype"] = tensor.dtype


def _read(dataset: h5py.Dataset, rows: slice | tuple[()] = ()) -> torch.Tensor:
    shape = dataset.shape
    if rows != ():
        assert isinstance(rows, slice)
        shape = (rows.stop - rows.start, *shape[1:])
    tensor = memory.empty(TensorLayout("", shape, dataset.attrs["dtype"]))
    if tensor.numel():
        array = dtypes.to_numpy(tensor).view(dataset.dtype)
        if not shape:
            array[()] = dataset[()]
        elif rows == ():
            dataset.read_direct(array)
        else:
            dataset.read_direct(array, np.s_[rows])
    return tensor
