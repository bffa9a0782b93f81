"""The base of the strategies that store one zarr (version 2) array per parameter.

The two of the original comparison handle one parameter at a time and differ in the chunk shape, the compressor and the
context; they store floating-point parameters of 16 bits as float32 and cast them back. `metadata.json` has the dtypes.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.formats import chunks, filenames
from ckpt.formats.chunks import chunk_count, chunk_indices, for_ranks, is_split, rows_in
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Capabilities, Footprint, Strategy, Syncs, Wanted

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_METADATA = "metadata.json"

_UPCAST = {"float16", "bfloat16"}

# TensorStore's zarr (version 2) names for what is stored in its own dtype.
_ZARR_DTYPE = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "int16": "<i2",
    "uint16": "<u2",
    "float16": "<f2",
    "int32": "<i4",
    "uint32": "<u4",
    "float32": "<f4",
    "int64": "<i8",
    "uint64": "<u8",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}  # bfloat16 and float8_* go by their own names


@dataclass(frozen=True)
class ZarrPerParameter(Strategy):
    """Opens, writes and waits for one zarr array after the other."""

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    chunks_before_the_cast: ClassVar[bool] = False
    """Whether `chunk_shape` gets the size of the state's elements, instead of that of the stored ones."""

    @property
    def capabilities(self) -> Capabilities:
        """TensorStore syncs a file before it gets its name."""
        return Capabilities(can_reshard=True, syncs=Syncs.ALL_FILES, atomic_files=True)

    @property
    def upcasts(self) -> bool:
        """Whether 16-bit floats are stored as float32."""
        return True

    @abstractmethod
    def chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:
        """Return the shape of the chunks of an array of that shape; no dimension is 0."""

    @abstractmethod
    def zarr_compressor(self) -> dict[str, Any]:
        """Return the compressor's entry in the array's metadata."""

    @abstractmethod
    def context(self) -> dict[str, Any]:
        """TensorStore's context: its limits of concurrency."""

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per chunk, a metadata file per array, and `metadata.json`; bytes as if uncompressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            stored = "float32" if self.upcasts and tensor.dtype in _UPCAST else tensor.dtype
            chunk = self._chunk(tensor, stored, partition)
            number = chunk_count(tensor.shape, chunk)
            file_count += number + 1
            # A chunk at the edge is stored whole. Compressors add a few bytes to what they can't compress.
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[stored]
            size_bytes += number * (chunk_bytes + chunk_bytes // 1000 + 64)
            size_bytes += 1024 + 2 * len(json.dumps(tensor.name))  # the array's metadata, and its entry in ours
        return Footprint(file_count, size_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:
        """Write this rank's chunks, the metadata of arrays whose first rows it has, and on rank 0 `metadata.json`."""
        stored = self._stored_dtypes(state, shards, group)
        self._write_arrays(state, directory, shards, stored)
        files = []
        if shards.rank == 0:
            _write_metadata(directory, shards.partition.layout)
            files = [directory / _METADATA]
        for shard in shards.owned:
            array = directory / _filename(shard.whole.name)
            files += [array / ".zarray"] if shard.start == 0 else []
            chunk = self._chunk(shard.whole, stored[shard.whole.name], shards.partition)
            files += [array / (".".join(index) or "0") for index in chunk_indices(shard, chunk)]
        return files

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # the arrays have everything
        """Read the wanted rows of the parameters."""
        dtype_of = read_metadata(directory)
        rows = {name: (wanted or {}).get(name) for name in select(dtype_of, wanted, directory)}
        return self._read_arrays(directory, dtype_of, rows)

    def _write_arrays(self, state: State, directory: Path, shards: RankShards, stored: Mapping[str, str]) -> None:
        """Write one parameter at a time, and wait until it is written."""
        import tensorstore as ts

        context = ts.Context(self.context())
        for shard in shards.owned:
            tensor = state[shard.whole.name]
            array = dtypes.to_numpy(tensor)
            if stored[shard.whole.name] != shard.whole.dtype:
                array = tensor.detach().cpu().float().contiguous().numpy()
            spec = self.spec_to_create(directory, shard, stored[shard.whole.name], shards.partition)
            store = ts.open(spec, context=context, **open_mode(shard, shards)).result()
            rows_in(store, shard).write(array).result()

    def _read_arrays(self, directory: Path, dtype_of: Mapping[str, str], rows: Mapping[str, Shard | None]) -> State:
        """Read one parameter at a time: wait for it, copy it, cast it back."""
        import tensorstore as ts

        context = ts.Context(self.context())
        state: State = {}
        for name, shard in rows.items():
            try:
                store = ts.open(spec_to_open(directory, name), context=context).result()
                array = rows_in(store, shard).read().result()
            except Exception as error:  # TensorStore raises one of many kinds
                raise CheckpointError(f"can't read parameter {name!r} of {directory}: {error}") from error
            state[name] = memory.own(dtypes.to_torch(array.copy()).to(dtypes.torch_dtype(dtype_of[name])))
        return state

    def _stored_dtypes(self, state: State, shards: RankShards, group: ProcessGroup) -> dict[str, str]:
        """Return the names of the dtypes on disk; ranks that have rows of one tensor agree on it."""
        dtype_of = {name: self._stored_dtype(tensor) for name, tensor in state.items()}
        shared = {
            tensor.name: tensor.dtype
            for tensor in shards.partition.layout
            if self.upcasts and tensor.dtype in _UPCAST and is_split(tensor, shards.partition)
        }
        if not shared:
            return dtype_of
        not_upcast = [name for name, dtype in dtype_of.items() if shared.get(name) == dtype]
        kept = {name for names in group.all_gather(not_upcast) for name in names}
        return {name: shared[name] if name in kept else dtype for name, dtype in dtype_of.items()}

    def _stored_dtype(self, tensor: torch.Tensor) -> str:
        """Return the name of the dtype on disk of a tensor that no other rank has rows of."""
        import torch

        name = dtypes.name_of(tensor)
        # The cast back maps all NaNs to one, so a tensor with a NaN isn't cast: its sum shows that in one pass.
        if self.upcasts and name in _UPCAST and not torch.isnan(tensor.sum(dtype=torch.float32)):
            return "float32"
        return name

    def _chunk(self, tensor: TensorLayout, stored: str, partition: Partition) -> list[int]:
        """Return the shape of the chunks of a parameter that is stored in that dtype."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype if self.chunks_before_the_cast else stored]
        return for_ranks(lambda shape: self.chunk_shape(shape, itemsize), tensor, partition)

    def spec_to_create(self, directory: Path, shard: Shard, stored: str, partition: Partition) -> dict[str, Any]:
        """TensorStore's spec of a parameter's new array."""
        return {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(directory / _filename(shard.whole.name))},
            "metadata": {
                "shape": list(shard.whole.shape),
                "dtype": _ZARR_DTYPE.get(stored, stored),
                "chunks": self._chunk(shard.whole, stored, partition),
                **self.zarr_compressor(),
            },
        }


def open_mode(shard: Shard, shards: RankShards) -> dict[str, Any]:
    """TensorStore's arguments to open a new array; no rank deletes what others write."""
    return chunks.open_mode(shard) | ({"delete_existing": True} if shards.partition.count == 1 else {})


def spec_to_open(directory: Path, name: str) -> dict[str, Any]:
    """TensorStore's spec of a parameter's array that exists."""
    return {
        "driver": "zarr",
        # The path comes from the name, not from the file's text, which could point anywhere.
        "kvstore": {"driver": "file", "path": str(directory / _filename(name))},
        # The arrays have no fill value, so every chunk is stored: one that is missing is lost, not zero.
        "fill_missing_data_reads": False,
    }


def _write_metadata(directory: Path, layout: Layout) -> None:
    """Store the names of the parameters, in their order, and their dtypes."""
    entries = {tensor.name: {"file": _filename(tensor.name), "dtype": tensor.dtype} for tensor in layout}
    metadata = {
        "format": "one zarr array per parameter",
        "param_count": len(entries),
        "param_names": list(entries),
        "params": entries,
    }
    # The one file that TensorStore neither writes nor syncs.
    durable.write_atomically(directory / _METADATA, json.dumps(metadata).encode(), sync=True)


def read_metadata(directory: Path) -> dict[str, str]:
    """Read the dtypes of the parameters by name, in the order of the state.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    path = directory / _METADATA
    try:
        metadata = json.loads(path.read_text())
        return {name: metadata["params"][name]["dtype"] for name in metadata["param_names"]}
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_METADATA}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _filename(name: str) -> str:
    return filenames.to_filename(name) + ".zarr"
