"""zarr-python: a group of zarr version 3 arrays."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt import dtypes, filenames
from ckpt.errors import CheckpointError
from ckpt.layout import Layout
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    import torch

    from ckpt.state import State

_GROUP = "zarr.json"
_MIB = 2**20

_AS_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""What zarr-python has no type for."""


@dataclass(frozen=True)
class ZarrPython(Strategy):
    """One array after the other, the chunks of each at once.

    Attributes:
        compression: `zstd`, zarr-python's default, or `none`.
        chunk_mib: the most that a chunk has.
    """

    compression: Literal["zstd", "none"] = "zstd"
    chunk_mib: Annotated[int, Field(ge=1)] = 64

    requires: ClassVar[tuple[str, ...]] = ("torch", "zarr", "ml_dtypes")

    extra: ClassVar[str] = "peers"

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v3, one array per parameter",
            chunks=f"along the first dimension, {self.chunk_mib} MiB at most",
            compression="zstd level 0" if self.compression == "zstd" else "none",
            concurrency="10 chunks at once, within one parameter",
            dtype_on_disk="as in the state; bfloat16 and float8 as unsigned integers",
            order_of_writes="one parameter at a time",
            synced="no",
            atomic="each file",
            checksum="none",
            partial_load="by tensor",
            other_readers="zarr-python, TensorStore",
            best_for="Python without TensorStore",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """A file per chunk, one for each array's metadata, and the group's; bytes as if nothing compressed."""
        file_count, size_bytes = 1, 4096
        for tensor in layout:
            itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            chunk = self._chunk_shape(tensor.shape, itemsize)
            chunks = math.prod(-(-size // part) for size, part in zip(tensor.shape, chunk, strict=True))
            file_count += chunks + 1
            chunk_bytes = math.prod(chunk) * itemsize
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 100 + 64) + 2048 + 12 * len(tensor.name)
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> None:
        """Write one array after the other, then the group's metadata, which names them."""
        import zarr

        root = directory.absolute()
        for name, tensor in state.items():
            array, dtype = dtypes.to_numpy(tensor), dtypes.name_of(tensor)
            bits = array.view(_AS_BITS.get(dtype, array.dtype))
            stored = zarr.create_array(
                _path(root, name),
                shape=bits.shape,
                dtype=bits.dtype,
                chunks=self._chunk_shape(bits.shape, bits.dtype.itemsize),
                compressors="auto" if self.compression == "zstd" else None,
                attributes={"dtype": dtype},
                config={"write_empty_chunks": True},  # or a chunk that was lost couldn't be told from zeros
            )
            stored[...] = bits
        zarr.create_group(root, attributes={"names": list(state)})

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read one array after the other."""
        import zarr

        root = directory.absolute()
        if not (root / _GROUP).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_GROUP}")
        try:
            known = list(zarr.open_group(root, mode="r").attrs["names"])
            return {
                name: _read(zarr.open_array(_path(root, name), mode="r"), name)
                for name in select(known, names, directory)
            }
        except CheckpointError:
            raise
        except Exception as error:  # zarr-python raises one of many kinds
            raise CheckpointError(f"can't read the arrays of {directory}: {type(error).__name__}: {error}") from error

    def _chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> tuple[int, ...]:
        """Equal parts of the first dimension, as many as it takes."""
        if 0 in shape or not shape:
            return tuple(max(1, size) for size in shape)
        parts = -(-math.prod(shape) * bytes_per_element // (self.chunk_mib * _MIB))
        return -(-shape[0] // min(parts, shape[0])), *shape[1:]


def _path(root: Path, name: str) -> Path:
    filename = filenames.to_filename(name)
    return root / ("zarr%2Ejson" if filename == _GROUP else filename)  # which no other name becomes


def _read(array: Any, name: str) -> torch.Tensor:
    import numpy as np

    if array.nchunks_initialized != array.nchunks:  # zarr-python would take zeros for them
        raise OSError(f"{array.nchunks - array.nchunks_initialized} chunks of {name!r} are missing")
    tensor = dtypes.to_torch(np.asarray(array[...]))
    return tensor.view(dtypes.torch_dtype(array.attrs["dtype"]))
