"""zarr-python: a group of zarr version 3 arrays."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import RANKS, alone, count, for_ranks, places
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Facts, Footprint, Strategy

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_METADATA = "zarr.json"
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
            ranks=RANKS,
            resharding="any number of ranks",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """As of one rank."""
        return self.footprint_together(Partition.of(layout, "replicated", 1))

    def footprint_together(self, partition: Partition) -> Footprint:
        """A file per chunk, one for each array's metadata, and the group's; bytes as if nothing compressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            chunk = self._chunk(tensor, partition)
            chunks = count(tensor.shape, chunk)
            file_count += chunks + 1
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 100 + 64) + 2048 + 12 * len(tensor.name)
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write everything, as one rank does."""
        return self.save_together(state, directory, alone(state), SingleProcess())

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:  # noqa: ARG002  # nobody waits for anybody
        """Write this rank's chunks, and the metadata of the arrays whose first rows it has."""
        self._write(state, directory, part)
        files = [directory / _METADATA] if part.rank == 0 else []
        for each in part.owned:
            path = _path(directory, each.whole.name)
            files += [path / _METADATA] if each.start == 0 else []
            files += _chunk_files(path, each, self._chunk(each.whole, part.partition))
        return files

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read everything, or the tensors of these names."""
        return self._read(directory, names, {})

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # the arrays tell all
        """Read the rows that this rank wants."""
        rows = {each.whole.name: each for each in part.held}
        state = self._read(directory, rows, rows)
        return {name: state[name] for name in rows}

    def _write(self, state: State, directory: Path, part: RankShards) -> None:
        """Write one array after the other, then the group's metadata, which names them."""
        import zarr

        root = directory.absolute()
        for each in part.owned:
            array = dtypes.to_numpy(state[each.whole.name])
            stored = self._new_array(_path(root, each.whole.name), each, part.partition)
            stored[slice(each.start, each.stop) if array.ndim else ...] = array.view(stored.dtype)
        if part.rank == 0:
            zarr.create_group(root, attributes={"names": [tensor.name for tensor in part.partition.layout]})

    def _new_array(self, path: Path, each: Shard, partition: Partition) -> Any:
        """The array to write these rows to: made by who has the first; the others know what it is without looking."""
        import zarr
        from zarr.storage import LocalStore, MemoryStore, StorePath

        config = {"write_empty_chunks": True}  # or a chunk that was lost couldn't be told from zeros
        made = zarr.create_array(
            path if each.start == 0 else MemoryStore(),
            shape=each.whole.shape,
            dtype=_AS_BITS.get(each.whole.dtype, each.whole.dtype),
            chunks=tuple(self._chunk(each.whole, partition)),
            compressors="auto" if self.compression == "zstd" else None,
            attributes={"dtype": each.whole.dtype},
            config=config,
        )
        if each.start == 0:
            return made
        return zarr.Array(zarr.AsyncArray(made.metadata, StorePath(LocalStore(path)), config=made.config))

    def _read(self, directory: Path, names: Collection[str] | None, rows: Mapping[str, Shard]) -> State:
        """Read one array after the other."""
        import zarr

        root = directory.absolute()
        if not (root / _METADATA).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_METADATA}")
        try:
            known = list(zarr.open_group(root, mode="r").attrs["names"])
            return {
                name: _read_array(_path(root, name), name, rows.get(name)) for name in select(known, names, directory)
            }
        except CheckpointError:
            raise
        except Exception as error:  # zarr-python raises one of many kinds
            raise CheckpointError(f"can't read the arrays of {directory}: {type(error).__name__}: {error}") from error

    def _chunk(self, tensor: TensorLayout, partition: Partition) -> list[int]:
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        return for_ranks(lambda shape: self._chunk_shape(shape, itemsize), tensor, partition)

    def _chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> tuple[int, ...]:
        """Equal parts of the first dimension, as many as it takes."""
        if 0 in shape or not shape:
            return tuple(max(1, size) for size in shape)
        parts = -(-math.prod(shape) * bytes_per_element // (self.chunk_mib * _MIB))
        return -(-shape[0] // min(parts, shape[0])), *shape[1:]


def _path(root: Path, name: str) -> Path:
    filename = filenames.to_filename(name)
    return root / ("zarr%2Ejson" if filename == _METADATA else filename)  # which no other name becomes


def _chunk_files(path: Path, each: Shard, chunk: Sequence[int]) -> list[Path]:
    """The files of an array's chunks that have these rows."""
    return [path.joinpath("c", *place) for place in places(each, chunk)]


def _read_array(path: Path, name: str, each: Shard | None) -> torch.Tensor:
    import numpy as np
    import zarr

    array = zarr.open_array(path, mode="r")
    # zarr-python would take zeros for what is missing.
    if each is None or each.is_whole:
        missing = array.nchunks - array.nchunks_initialized
    else:
        missing = sum(not file.exists() for file in _chunk_files(path, each, array.chunks))
    if missing:
        raise OSError(f"{missing} chunks of {name!r} are missing")
    tensor = dtypes.to_torch(np.asarray(array[...] if each is None or each.is_whole else array[each.start : each.stop]))
    return memory.own(tensor.view(dtypes.torch_dtype(array.attrs["dtype"])))
