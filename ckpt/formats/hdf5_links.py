"""Checks which other files HDF5 reads for a file of ours: those of other ranks beside it, and no others."""

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
    """Check that these links are ours: they lead to a dataset here, or in a rank's file beside it.

    Raises:
        CheckpointError: if one isn't.
    """
    import h5py

    elsewhere: dict[str, list[str]] = {}
    for link in links:
        target = file.get(link, getlink=True)
        if target is None:
            continue  # reading it raises an error
        if isinstance(target, h5py.ExternalLink) and _RANKS_FILE.fullmatch(target.filename):
            elsewhere.setdefault(target.filename, []).append(target.path)
        elif not isinstance(target, h5py.HardLink):
            raise CheckpointError(f"{path}: {link} is a link that this package did not write, and is not followed")
        else:
            _refuse_other_files(file[link], path, virtual=True)
    for name, paths in elsewhere.items():
        with opened(path.parent / name) as other:
            for target_path in paths:
                if "/" in target_path.removeprefix("/"):
                    raise CheckpointError(f"{path} links to {target_path} in {name}, which this package did not write")
                require_links(other, [target_path.removeprefix("/")], path.parent / name)
                _refuse_other_files(other[target_path], path.parent / name)


def require_sources(dataset: h5py.Dataset, directory: Path) -> None:
    """Check that a virtual dataset consists of datasets in ranks' files, which exist.

    Raises:
        CheckpointError: if it has other sources.
        ValueError: if a source has another shape.
    """
    expected_name = dataset.name.removeprefix("/").replace("%", "%%") if dataset.is_virtual else ""
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        name, source_name = source.file_name, source.dset_name.removeprefix("/")
        if not _RANKS_FILE.fullmatch(name) or source_name != expected_name:
            raise CheckpointError(f"{directory}: {dataset.name} shows {source_name} of {name!r}, which is not followed")
        first, last = source.vspace.get_select_bounds()
        with opened(directory / name) as file:
            require_links(file, [dataset.name.removeprefix("/")], directory / name)
            _refuse_other_files(file[dataset.name], directory / name)
            shape, expected = file[dataset.name].shape, tuple(b - a + 1 for a, b in zip(first, last, strict=True))
            if shape != expected:
                raise ValueError(f"{dataset.name!r} has the shape {shape}, expected {expected}")


def _refuse_other_files(dataset: h5py.Dataset, path: Path, *, virtual: bool = False) -> None:
    if dataset.external or (dataset.is_virtual and not virtual):
        raise CheckpointError(f"{path}: {dataset.name} shows data of other files, which is not followed")
