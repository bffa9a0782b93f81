"""zarr-python: a group of zarr version 3 arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import MIB, RANKS, chunk_count, chunk_indices, for_ranks, row_chunks
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, memory
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Capabilities, Description, Footprint, Strategy, Wanted

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_METADATA = "zarr.json"


@dataclass(frozen=True)
class ZarrPython(Strategy):
    """Writes and reads one array after the other, and all chunks of an array at once.

    Attributes:
        compression: `zstd`, zarr-python's default, or `none`.
        chunk_mib: the largest size of a chunk, unless a row has more.
    """

    compression: Literal["zstd", "none"] = "zstd"
    chunk_mib: Annotated[int, Field(ge=1)] = 64

    name: ClassVar[str] = "zarr_python"

    requires: ClassVar[tuple[str, ...]] = ("torch", "zarr", "ml_dtypes")

    extra: ClassVar[str] = "peers"

    @property
    def capabilities(self) -> Capabilities:
        """zarr-python renames a file when it is complete, and syncs none."""
        return Capabilities(can_reshard=True, atomic_files=True)

    def describe(self) -> Description:
        """Describe the arrays."""
        return Description(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v3, one array per parameter",
            chunks=f"along the first dimension, {self.chunk_mib} MiB at most",
            compression="zstd level 0" if self.compression == "zstd" else "none",
            concurrency="10 chunks at once, within one parameter",
            dtype_on_disk="as in the state; bfloat16 and float8 as unsigned integers",
            order_of_writes="one parameter at a time",
            other_readers="zarr-python, TensorStore",
            best_for="Python without TensorStore",
            ranks=RANKS,
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per chunk, a metadata file per array, and the group's; bytes as if uncompressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            chunk = self._chunk(tensor, partition)
            chunks = chunk_count(tensor.shape, chunk)
            file_count += chunks + 1
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 100 + 64) + 2048 + 12 * len(tensor.name)
        return Footprint(file_count, size_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write this rank's chunks, the metadata of arrays whose first rows it has, and on rank 0 the group's."""
        import zarr

        files = []
        for shard in shards.owned:
            path = _path(directory, shard.whole.name)
            array = dtypes.to_numpy(state[shard.whole.name])
            stored = self._new_array(path.absolute(), shard, shards.partition)
            stored[slice(shard.start, shard.stop) if array.ndim else ...] = array.view(stored.dtype)
            files += [path / _METADATA] if shard.start == 0 else []
            files += _chunk_files(path, shard, self._chunk(shard.whole, shards.partition))
        if shards.rank == 0:
            names = [tensor.name for tensor in shards.partition.layout]
            zarr.create_group(directory.absolute(), attributes={"names": names})
            files.append(directory / _METADATA)
        return files

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # the arrays have everything
        """Read the wanted rows of one array after the other."""
        import zarr

        root = directory.absolute()
        if not (root / _METADATA).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_METADATA}")
        try:
            known = list(zarr.open_group(root, mode="r").attrs["names"])
            return {
                name: _read_array(_path(root, name), name, (wanted or {}).get(name))
                for name in select(known, wanted, directory)
            }
        except CheckpointError:
            raise
        except Exception as error:  # zarr-python raises one of many kinds
            raise CheckpointError(f"can't read the arrays of {directory}: {type(error).__name__}: {error}") from error

    def _new_array(self, path: Path, shard: Shard, partition: Partition) -> Any:
        """Return the array to write a shard to: the rank with its first rows creates it, others derive the metadata."""
        import zarr
        from zarr.storage import LocalStore, MemoryStore, StorePath

        config = {"write_empty_chunks": True}  # or a lost chunk would look like one of zeros
        array = zarr.create_array(
            path if shard.start == 0 else MemoryStore(),
            shape=shard.whole.shape,
            dtype=dtypes.AS_UNSIGNED.get(shard.whole.dtype, shard.whole.dtype),
            chunks=tuple(self._chunk(shard.whole, partition)),
            compressors="auto" if self.compression == "zstd" else None,
            attributes={"dtype": shard.whole.dtype},
            config=config,
        )
        if shard.start == 0:
            return array
        return zarr.Array(zarr.AsyncArray(array.metadata, StorePath(LocalStore(path)), config=array.config))

    def _chunk(self, tensor: TensorLayout, partition: Partition) -> list[int]:
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        return for_ranks(lambda shape: row_chunks(shape, itemsize, self.chunk_mib * MIB), tensor, partition)


def _path(root: Path, name: str) -> Path:
    filename = filenames.to_filename(name)
    return root / ("zarr%2Ejson" if filename == _METADATA else filename)  # which no other name becomes


def _chunk_files(path: Path, shard: Shard, chunk: Sequence[int]) -> list[Path]:
    """Return the files of the chunks of an array that have rows of a shard."""
    return [path.joinpath("c", *index) for index in chunk_indices(shard, chunk)]


def _read_array(path: Path, name: str, shard: Shard | None) -> torch.Tensor:
    import numpy as np
    import zarr

    array = zarr.open_array(path, mode="r")
    # zarr-python would return zeros for missing chunks.
    if shard is None or shard.is_whole:
        rows: Any = ...
        missing = array.nchunks - array.nchunks_initialized
    else:
        rows = slice(shard.start, shard.stop)
        missing = sum(not file.exists() for file in _chunk_files(path, shard, array.chunks))
    if missing:
        raise OSError(f"{missing} chunks of {name!r} are missing")
    tensor = dtypes.to_torch(np.asarray(array[rows]))
    return memory.own(tensor.view(dtypes.torch_dtype(array.attrs["dtype"])))
