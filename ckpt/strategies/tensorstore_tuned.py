"""TensorStore at its fastest: one standard zarr v3 array per parameter, all in flight, without avoidable copies.

    directory/zarr.json            a zarr group; its attributes name the tensors, in the order of the state
    directory/<name>/zarr.json     an array per tensor, native dtype
    directory/<name>/c.0.0         its chunks, split along the first dimension; every rank writes its own

What made it fast: no upcast, no copy (`can_reference_source_data_indefinitely`, which takes whole contiguous chunks),
no lock files, one sync pass at the end, all arrays opened before waiting for the first, and reads into memory in huge
pages that is allocated beforehand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.disk import direct_io, io_plan
from ckpt.errors import CheckpointError
from ckpt.formats import shard_files, zarr_group
from ckpt.formats.chunks import (
    MIB,
    RANKS,
    chunk_count,
    chunk_indices,
    chunk_shape,
    for_ranks,
    is_split,
    nearest_divisor,
    open_mode,
    rows_in,
    shard_shape,
)
from ckpt.formats.tensorstore_futures import wait_all
from ckpt.formats.zarr_group import METADATA, Listed
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, memory
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Capabilities, Checksum, Description, Footprint, Strategy, Wanted
from ckpt.threads import Beside

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ckpt.state.layout import State

_INDEX_BYTES = 16
"""The size of a chunk's entry in a shard's index."""


@dataclass(frozen=True)
class TensorstoreTuned(Strategy):
    """One zarr v3 array per parameter, by TensorStore.

    TensorStore always writes through the page cache. Where direct writes would be slower still, complete files are
    flushed while others are being written.

    Attributes:
        compression: `zstd` is blosc's, with byte shuffle: for filesystems slower than about half a GB/s per core.
        level: of the compression.
        crc32c: store a checksum per chunk, and verify it on load.
        shard_mib: put chunks of this size in total into one file; 0 for a file per chunk.
        chunk_mib: the largest size of a chunk.
        concurrency: the number of files in flight.
        plain_types: store bfloat16 and float8 as unsigned integers, which zarr-python can open.
        direct: read past the page cache (true) or through it (false); by default as the filesystem is faster, and files
            that are in the page cache are read from there.
    """

    compression: Literal["none", "zstd"] = "none"
    level: Annotated[int, Field(ge=1, le=9)] = 1
    crc32c: bool = False
    shard_mib: Annotated[int, Field(ge=0)] = 0
    chunk_mib: Annotated[int, Field(ge=1, le=1024)] = 64
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    plain_types: bool = False
    direct: Literal["auto", True, False] = "auto"

    name: ClassVar[str] = "tensorstore_tuned"

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    @property
    def contradiction(self) -> str:
        """Refuse a compression level without compression, and a shard smaller than its chunks."""
        if self.level != 1 and self.compression == "none":
            return 'level has no effect with compression = "none"'
        if 0 < self.shard_mib < self.chunk_mib:
            return f"a shard of {self.shard_mib} MiB can't hold a chunk of {self.chunk_mib} MiB"
        return ""

    @property
    def capabilities(self) -> Capabilities:
        """TensorStore renames a file when it is complete; here it syncs none."""
        checksum = Checksum.VERIFIED if self.crc32c else Checksum.NONE
        return Capabilities(can_reshard=True, loads_in_place=True, checksum=checksum, atomic_files=True)

    def describe(self) -> Description:
        """Describe the group and its arrays."""
        chunks = f"{self.chunk_mib} MiB at most, along the first dimension"
        return Description(
            files=f"1 per {'shard' if self.shard_mib else 'chunk'}, 1 per parameter, 1",
            format="zarr v3, one array per parameter, in a group",
            chunks=f"{chunks}; shards of {self.shard_mib} MiB" if self.shard_mib else chunks,
            compression="none" if self.compression == "none" else f"blosc zstd level {self.level} with shuffle",
            concurrency=f"{self.concurrency} files",
            dtype_on_disk="as in the state"
            + (", bfloat16 and float8 as unsigned integers" if self.plain_types else ""),
            order_of_writes="all at once",
            other_readers="TensorStore, zarr-python"
            + ("" if self.plain_types else " (of types that it knows: not bfloat16, float8)"),
            best_for="An open format, in pieces, at nearly the disk's speed",
            ranks=RANKS,
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per chunk or shard, a metadata file per array, and the group's; bytes as if uncompressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            size_bytes += 200 + 4 * len(json.dumps(tensor.name))
            if tensor.same_as is None:
                chunk, shard = self._shapes(tensor, partition)
                files = chunk_count(tensor.shape, shard)
                chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
                chunks = files * chunk_count(shard, chunk)
                size_bytes += chunks * (chunk_bytes + chunk_bytes // 1000 + 64 + _INDEX_BYTES) + files * 64 + 2048
                file_count += files + 1
        return Footprint(file_count, size_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write this rank's chunks, the metadata of arrays whose first rows it has, and on rank 0 the group's."""
        owners = [shard for shard in shards.owned if shard.whole.same_as is None]  # a tied tensor has no array
        self._write_arrays(state, directory, owners, shards.partition)
        files = []
        if shards.rank == 0:
            zarr_group.write_group(directory, shards.partition.layout)
            files = [directory / METADATA]
        for shard in owners:
            array = zarr_group.path_of(directory, shard.whole.name)
            files += [array / METADATA] if shard.start == 0 else []
            _, file_shape = self._shapes(shard.whole, shards.partition)
            files += [array / zarr_group.chunk_name(index) for index in chunk_indices(shard, file_shape)]
        return files

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # the arrays have everything
        """Read the wanted rows: through the page cache if the files are in it, else as the filesystem is faster."""
        listed = zarr_group.read_group(directory)
        rows = {name: (wanted or {}).get(name) for name in shard_files.select(listed, wanted, directory)}
        state = self._read_arrays(directory, listed, rows, group)
        return {name: state[listed[name].owner] for name in rows}

    def fill(self, directory: Path, into: State, wanted: Wanted, stored: Partition | None, group: ProcessGroup) -> None:  # noqa: ARG002  # the arrays have everything
        """Let TensorStore copy the wanted rows into the targets."""
        listed = zarr_group.read_group(directory)
        rows = {name: wanted[name] for name in shard_files.select(listed, into, directory)}
        self._read_arrays(directory, listed, rows, group, {listed[name].owner: into[name] for name in rows})

    def _write_arrays(self, state: State, directory: Path, owners: Sequence[Shard], partition: Partition) -> None:
        """Open all arrays, write all, and only then wait."""
        import tensorstore as ts

        context = self._context()
        opened = [
            ts.open(
                _spec(directory, shard.whole.name)
                | {"metadata": self._metadata(shard.whole, partition), "store_data_equal_to_fill_value": True},
                context=context,
                **open_mode(shard),
            )
            for shard in owners
        ]
        stores = zip(owners, wait_all(opened), strict=True)
        writes = [
            rows_in(store, shard).write(
                _as_stored(state[shard.whole.name], store.dtype.numpy_dtype),
                can_reference_source_data_indefinitely=True,
            )
            for shard, store in stores
        ]
        if not io_plan.plan_for(directory).forced(self.direct).direct_writes:
            for shard, write in zip(owners, writes, strict=True):
                if write.exception() is None:
                    self._start_writeback(directory, shard, partition)
        wait_all(writes)

    def _start_writeback(self, directory: Path, shard: Shard, partition: Partition) -> None:
        """Let the kernel begin to write an array's complete files to storage, while others are being written."""
        array = zarr_group.path_of(directory, shard.whole.name)
        for index in chunk_indices(shard, self._shapes(shard.whole, partition)[1]):
            direct_io.start_writeback_of(array / zarr_group.chunk_name(index))

    def _read_arrays(
        self,
        directory: Path,
        listed: Mapping[str, Listed],
        rows: Mapping[str, Shard | None],
        group: ProcessGroup,
        targets: State | None = None,
    ) -> State:
        """Open all arrays, read all into the targets, or memory that is being allocated meanwhile; only then wait."""
        import tensorstore as ts

        context = self._context(direct=zarr_group.reads_directly(directory, rows, group, self.direct))
        owners = {listed[name].owner: shard for name, shard in rows.items()}
        try:
            # Every chunk is stored, zeros too: a missing one is lost.
            known = {"fill_missing_data_reads": False}
            opened = [ts.open(_spec(directory, name) | known, open=True, context=context) for name in owners]
            arrays = zip(owners.items(), wait_all(opened), strict=True)
            stores = {name: rows_in(store, shard) for (name, shard), store in arrays}
            layouts = {name: TensorLayout(name, tuple(at.shape), listed[name].dtype) for name, at in stores.items()}
            if targets is not None:
                shard_files.check_targets(layouts, targets, directory)
            state = targets or {name: memory.empty(layout) for name, layout in layouts.items()}
            with Beside() as beside:
                if targets is None:
                    beside.submit(memory.prefault, state.values())
                wait_all(
                    ts.array(_as_stored(state[name], store.dtype.numpy_dtype)).write(store)
                    for name, store in stores.items()
                    if state[name].numel()
                )
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read {directory}: {error}") from error
        return state

    def _context(self, *, direct: bool = False) -> Any:
        import tensorstore as ts

        return ts.Context({
            "cache_pool": {"total_bytes_limit": 0},
            "file_io_concurrency": {"limit": self.concurrency},
            "file_io_locking": {"mode": "none"},  # no file has two writers
            "file_io_mode": {"mode": "direct" if direct else "default"},  # of reads
            "file_io_sync": False,  # `durable.flush` syncs once at the end
        })  # fmt: skip

    def _shapes(self, tensor: TensorLayout, partition: Partition) -> tuple[list[int], list[int]]:
        """Return the shapes of a chunk and of a file."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        shard = for_ranks(lambda shape: self._wanted(shape, itemsize)[1], tensor, partition)
        chunk = for_ranks(lambda shape: self._wanted(shape, itemsize)[0], tensor, partition)
        if is_split(tensor, partition):
            chunk[0] = nearest_divisor(shard[0], chunk[0])
        return chunk, shard

    def _wanted(self, shape: tuple[int, ...], itemsize: int) -> tuple[list[int], list[int]]:
        """Return the shapes of a chunk and of a file for an array that one rank writes."""
        chunk = chunk_shape(shape, itemsize, self.chunk_mib * MIB)
        return chunk, shard_shape(shape, chunk, itemsize, self.shard_mib * MIB)

    def _metadata(self, tensor: TensorLayout, partition: Partition) -> dict[str, Any]:
        chunk, shard = self._shapes(tensor, partition)
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs: list[dict[str, Any]] = [little]
        if self.compression == "zstd":
            itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            blosc = {"cname": "zstd", "clevel": self.level, "shuffle": "shuffle", "typesize": itemsize, "blocksize": 0}
            codecs.append({"name": "blosc", "configuration": blosc})
        if self.crc32c:
            codecs.append({"name": "crc32c"})
        if self.shard_mib:
            inner = {"chunk_shape": chunk, "codecs": codecs, "index_codecs": [little, {"name": "crc32c"}]}
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        return {
            "shape": list(tensor.shape),
            "data_type": dtypes.AS_UNSIGNED.get(tensor.dtype, tensor.dtype) if self.plain_types else tensor.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "chunk_key_encoding": {
                "name": "default",
                "configuration": {"separator": "."},  # no directory per chunk
            },
            "codecs": codecs,
            "attributes": {"dtype": tensor.dtype},
        }


def _spec(directory: Path, name: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{zarr_group.path_of(directory, name)}/"},
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def _as_stored(tensor: torch.Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """Return the tensor's memory as an array of the stored dtype: its own, or an integer of the same width."""
    return dtypes.to_numpy(tensor).view(dtype)
