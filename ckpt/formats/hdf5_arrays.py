"""HDF5 files of any program: every dataset of numbers is a tensor, named by its path.

HDF5 can present other files' contents as a file's own, and load code for a filter: such a file is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError
from ckpt.formats.hdf5_files import opened
from ckpt.formats.shard_files import select
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import Layout, TensorLayout

if TYPE_CHECKING:
    import h5py

    from ckpt.state.layout import State

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
"""The filters that HDF5 and h5py have built in: deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays in a file.

    Attributes:
        datasets: every dataset of numbers, by path.
        same_as: for a path to a dataset that has an earlier path, the earlier path.
        left_out: paths to anything else, and soft links.
    """

    datasets: dict[str, h5py.Dataset]
    same_as: dict[str, str]
    left_out: list[str]

    @property
    def layout(self) -> Layout:
        """The datasets as tensors."""
        return tuple(
            TensorLayout(name, tuple(dataset.shape), dataset.dtype.name, self.same_as.get(name))
            for name, dataset in self.datasets.items()
        )


@contextmanager
def arrays_of(path: Path) -> Iterator[Arrays]:
    """Open a file, and find its arrays in all groups.

    Raises:
        CheckpointError: if it is damaged, or presents data of another file.
    """
    with opened(path) as file:
        arrays = Arrays({}, {}, [])
        _collect(file, path, arrays)
        yield arrays


def load(path: Path, names: Collection[str] | None) -> tuple[State, list[str]]:
    """Load the tensors of these names, or all; returns them, and the paths that were left out."""
    with arrays_of(path) as arrays:
        state: State = {}
        chosen = select(arrays.datasets, names, path)
        for name in chosen:
            owner = arrays.same_as.get(name, name)
            state[name] = state[owner] if owner in state else _read(arrays.datasets[name])
        return state, arrays.left_out


def require_plain(dataset: h5py.Dataset, where: str) -> None:
    """Check that a dataset is stored in its own file, and needs no filter that HDF5 would have to load.

    Raises:
        CheckpointError: if it isn't, or does.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    unknown = [name.decode(errors="replace") or str(code) for code, _, _, name in filters if code not in _FILTERS]
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{where}: {dataset.name} shows data of other files, which is not followed")
    if unknown:
        raise CheckpointError(f"{where}: {dataset.name} needs the filter {unknown[0]}, which is not loaded")


def _collect(file: h5py.File, path: Path, arrays: Arrays) -> None:
    import h5py

    first: dict[Any, str] = {}
    seen = {_address(file)}
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    while groups:
        prefix, group = groups.pop(0)
        for key in group:
            name, link = f"{prefix}{key}", group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise CheckpointError(f"{path}: {name} is a link to another file, which is not followed")
            if not isinstance(link, h5py.HardLink):
                arrays.left_out.append(name)
                continue
            item = group[key]
            if isinstance(item, h5py.Group) and _address(item) not in seen:
                seen.add(_address(item))
                groups.append((f"{name}/", item))
            elif isinstance(item, h5py.Dataset) and item.shape is not None and _is_number(item.dtype):
                require_plain(item, str(path))
                owner = first.setdefault(_address(item), name)
                arrays.datasets[name] = item
                if owner != name:
                    arrays.same_as[name] = owner
            else:
                arrays.left_out.append(name)


def _address(item: h5py.HLObject) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" and dtype.name in BYTES_PER_ELEMENT


def _read(dataset: h5py.Dataset) -> Any:
    import torch

    try:
        tensor = torch.empty(tuple(dataset.shape), dtype=getattr(torch, dataset.dtype.name))
    except RuntimeError as error:  # more than the machine has
        raise MemoryError(f"{dataset.name} has {list(dataset.shape)} elements") from error
    if tensor.numel():
        dataset.read_direct(tensor.numpy())
    return tensor
