"""HDF5 through h5py: one file, one dataset per tensor."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ckpt import dtypes, filenames
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, state_bytes
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    import h5py
    import torch

    from ckpt.state import State

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

    def save(self, state: State, directory: Path) -> None:
        """Write one dataset after the other, in a format whose metadata have checksums."""
        import h5py

        with _PatientFile(directory / _FILE, "w+") as raw:
            first: dict[tuple[object, ...], h5py.Dataset] = {}
            with h5py.File(raw, "w", libver=("v110", "v110"), track_order=True) as file:
                for name, tensor in state.items():
                    link = filenames.to_filename(name)
                    if dtypes.identity(tensor) in first:
                        file[link] = first[dtypes.identity(tensor)]
                    else:
                        first[dtypes.identity(tensor)] = self._write(file, link, tensor)
                file.attrs["names"] = np.void(json.dumps(list(state)).encode() + b"\n")
            if raw.error:
                raise raw.error

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read one dataset after the other."""
        import h5py

        path = directory / _FILE
        if not path.exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_FILE}")
        state: State = {}
        read: dict[int, torch.Tensor] = {}
        try:
            with h5py.File(path, "r", locking="best-effort") as file:
                for name in select(json.loads(file.attrs["names"].tobytes()), names, directory):
                    dataset = file[filenames.to_filename(name)]
                    address = h5py.h5o.get_info(dataset.id).addr
                    if address not in read:
                        read[address] = _read(dataset)
                    state[name] = read[address]
        except (OSError, LookupError, ValueError, TypeError, RuntimeError) as error:  # h5py raises one of many kinds
            raise CheckpointError(f"can't read {path}: {type(error).__name__}: {error}") from error
        return state

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


def _read(dataset: h5py.Dataset) -> torch.Tensor:
    tensor = dtypes.to_torch(np.asarray(dataset[()]))
    return tensor.view(dtypes.torch_dtype(dataset.attrs["dtype"]))


class _PatientFile(io.FileIO):
    """A file that keeps its first error for later: HDF5 has no way back from a failed write, and may crash."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, or remember why not."""
        view = memoryview(data).cast("B")
        while view and not self.error:
            try:
                view = view[super().write(view) :]  # Linux writes 2 GiB at most
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size, or remember why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0
