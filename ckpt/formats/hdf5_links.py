"""Which other files HDF5 may read for one of ours: those of the ranks beside it, and nothing else that a file names."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.errors import CheckpointError
from ckpt.formats.hdf5_files import opened

if TYPE_CHECKING:
    import h5py

_RANKS_FILE = re.compile(r"state-\d{5,}-of-\d{5,}\.h5")


def require_links(file: h5py.File, links: Collection[str], path: Path) -> None:
    """Make sure that HDF5 will follow no link but ours: to a dataset here, or in a rank's file beside it.

    Raises:
        CheckpointError: if it would.
    """
    import h5py

    elsewhere: dict[str, list[str]] = {}
    for link in links:
        found = file.get(link, getlink=True)
        if found is None:
            continue  # who reads it, says so
        if isinstance(found, h5py.ExternalLink) and _RANKS_FILE.fullmatch(found.filename):
            elsewhere.setdefault(found.filename, []).append(found.path)
        elif not isinstance(found, h5py.HardLink):
            raise CheckpointError(f"{path}: {link} is a link that this package did not write, and is not followed")
        else:
            _refuse_others_bytes(file[link], path, virtual=True)
    for name, paths in elsewhere.items():
        with opened(path.parent / name) as other:
            for each in paths:
                if "/" in each.removeprefix("/"):
                    raise CheckpointError(f"{path} links to {each} in {name}, which this package did not write")
                require_links(other, [each.removeprefix("/")], path.parent / name)
                _refuse_others_bytes(other[each], path.parent / name)


def require_sources(dataset: h5py.Dataset, directory: Path) -> None:
    """Make sure that what a virtual dataset shows is there, and a rank's.

    Raises:
        CheckpointError: if it is another's.
        ValueError: if it has another shape.
    """
    expected_name = dataset.name.removeprefix("/").replace("%", "%%") if dataset.is_virtual else ""
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        name, shown = source.file_name, source.dset_name.removeprefix("/")
        if not _RANKS_FILE.fullmatch(name) or shown != expected_name:
            raise CheckpointError(f"{directory}: {dataset.name} shows {shown} of {name!r}, which is not followed")
        first, last = source.vspace.get_select_bounds()
        with opened(directory / name) as file:
            require_links(file, [dataset.name.removeprefix("/")], directory / name)
            _refuse_others_bytes(file[dataset.name], directory / name)
            shape, expected = file[dataset.name].shape, tuple(b - a + 1 for a, b in zip(first, last, strict=True))
            if shape != expected:
                raise ValueError(f"{dataset.name!r} has the shape {shape}, expected {expected}")


def _refuse_others_bytes(dataset: h5py.Dataset, path: Path, *, virtual: bool = False) -> None:
    if dataset.external or (dataset.is_virtual and not virtual):
        raise CheckpointError(f"{path}: {dataset.name} shows what lies in other files, which is not followed")
