"""HDF5 files of several ranks, and the common file that shows whole tensors to any reader of HDF5.

The common file has links to the tensors that lie in one file, and virtual datasets for those whose rows lie in
several. HDF5 reads a missing part of a virtual dataset as zeros without an error, so strategies read the ranks' files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt.formats import filenames
from ckpt.formats.hdf5_files import create
from ckpt.state import dtypes
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Fragment, Partition, Shard, rows_of

if TYPE_CHECKING:
    import h5py

ROWS = "rows_of_whole"
"""The attribute of a dataset that has some rows of a tensor: its first row, and the number of rows of the tensor."""


def write_common(path: Path, partition: Partition) -> None:
    """Write the common file, which follows from the partition: no rank waits for another."""
    import h5py

    with create(path, [tensor.name for tensor in partition.layout]) as file:
        for tensor, parts in _parts(path, partition):
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


def _parts(path: Path, partition: Partition) -> Iterator[tuple[TensorLayout, list[tuple[str, Fragment]]]]:
    """Yield tensors with the files and rows that they consist of; one tensor at a time if ranks have rows of all."""
    whole = tuple(Shard(tensor, 0, rows_of(tensor)) for tensor in partition.layout if tensor.same_as is None)
    for shards in [(shard,) for shard in whole] if partition.sharding == "dim0" else [whole]:
        parts: dict[TensorLayout, list[tuple[str, Fragment]]] = {}
        for rank, fragments in partition.fragments(shards).items():
            filename = filenames.of_rank(path.name, rank, partition.count)
            for fragment in fragments:
                parts.setdefault(fragment.wanted.whole, []).append((filename, fragment))
        yield from parts.items()


def _write_virtual(file: h5py.File, link: str, tensor: TensorLayout, parts: list[tuple[str, Fragment]]) -> None:
    import h5py
    import torch

    array = dtypes.to_numpy(torch.empty(0, dtype=dtypes.torch_dtype(tensor.dtype)))
    dtype = np.dtype(dtypes.AS_UNSIGNED.get(tensor.dtype, array.dtype))
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
