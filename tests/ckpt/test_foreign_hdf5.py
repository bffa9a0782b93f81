"""HDF5 files that other programs wrote: their datasets are tensors, and nothing else is followed or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import ckpt
from ckpt import CheckpointError, CheckpointWarning
from support.foreign import names_of


def test_hdf5_files(tmp_path: Path) -> None:
    """An HDF5 file of any name, alone or in its directory, is a tensor for each dataset of numbers, by its path; a
    dataset with two names is one tensor; texts and soft links are left, and named.
    """
    with h5py.File(tmp_path / "model.hdf5", "w") as file:
        file["layer/kernel"] = np.arange(6, dtype=">f4").reshape(2, 3)
        file["tied"] = file["layer/kernel"]
        file.create_dataset("packed", data=np.ones((100, 100), np.int16), compression="gzip", shuffle=True)
        file["empty"], file["scalar"] = np.zeros((0, 4)), 3.5
        file["layer/itself"] = file["layer"]
    for path in (tmp_path, tmp_path / "model.hdf5"):
        with pytest.warns(CheckpointWarning, match=r"not loaded: layer/itself, which hold no numbers, or are links"):
            loaded = ckpt.load(path)
        assert torch.equal(torch.arange(6.0).reshape(2, 3), loaded["layer/kernel"])
        assert loaded["tied"] is loaded["layer/kernel"]
        assert (loaded["packed"].sum().item(), loaded["scalar"].item(), tuple(loaded["empty"].shape)) == (
            1e4,
            3.5,
            (0, 4),
        )
        assert ("float32", (2, 3)) == names_of(path)["layer/kernel"]
    with h5py.File(tmp_path / "model.hdf5", "a") as file:
        file["text"], file["soft"] = "hello", h5py.SoftLink("/tied")
    with pytest.warns(CheckpointWarning, match=r"not loaded: soft, text, layer/itself"):
        ckpt.load(tmp_path)
    assert ["packed"] == list(ckpt.load(tmp_path, ["packed"]))


def _external_link(file: h5py.File, secret: Path) -> None:
    file["w"] = h5py.ExternalLink(str(secret), "/w")


def _external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("w", (4,), "u1", external=[(str(secret), 0, 4)])


def _virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "w", (4,))
    file.create_virtual_dataset("w", layout)


def _soft_through_external(file: h5py.File, secret: Path) -> None:
    file["e"] = h5py.ExternalLink(str(secret), "/")
    file["w"] = h5py.SoftLink("/e/w")


@pytest.mark.parametrize("show", [_external_link, _external_storage, _virtual, _soft_through_external])
@pytest.mark.parametrize("ours", [False, True])
def test_hdf5_files_that_show_others(tmp_path: Path, show: Callable[[h5py.File, Path], None], ours: bool) -> None:
    """A file that would show what lies in another file is refused in one message, also one that looks like ours."""
    with h5py.File(tmp_path / "secret", "w") as file:
        file["w"] = np.ones(4, np.float32)
    (tmp_path / "c").mkdir()
    with h5py.File(tmp_path / "c" / "state.h5", "w") as file:
        show(file, tmp_path / "secret")
        if ours:
            file.attrs["names"] = np.void(b'["w"]\n')
            if isinstance(file.get("w", getlink=True), h5py.HardLink):
                file["w"].attrs["dtype"] = "float32"
    with pytest.raises(CheckpointError, match=r"not followed|did not write"):
        ckpt.load(tmp_path / "c")


def test_hdf5_filters(tmp_path: Path) -> None:
    """A filter that HDF5 would have to load a library for is refused, and the message names it."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((2,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((4,)), properties)
    with pytest.raises(CheckpointError, match="needs the filter 32015, which is not loaded"):
        ckpt.load(tmp_path / "m.h5")
