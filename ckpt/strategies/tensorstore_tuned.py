"""TensorStore as it can be: one standard zarr v3 array per parameter, all in flight, nothing copied that need not be.

    directory/zarr.json            a zarr group; its attributes name the tensors, in the order of the state
    directory/<name>/zarr.json     an array per tensor, native dtype
    directory/<name>/c.0.0         its chunks, split along the first dimension; of many ranks each writes its own

What made it fast: no upcast, no copy (`can_reference_source_data_indefinitely`, which takes whole contiguous chunks),
no lock files, one sync pass at the end, every array opened before the first is waited for, and reads into memory, in
huge pages, that exists already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.disk import page_cache
from ckpt.errors import CheckpointError
from ckpt.formats import zarr_group
from ckpt.formats.chunks import (
    RANKS,
    alone,
    chunk_shape,
    count,
    for_ranks,
    is_cut,
    nearest_divisor,
    opening,
    places,
    rows_in,
    shard_shape,
)
from ckpt.formats.shard_files import select
from ckpt.formats.tensorstore_futures import finished
from ckpt.formats.zarr_group import METADATA, Listed
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Facts, Footprint, Strategy
from ckpt.threads import Beside

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ckpt.state.layout import State

_MIB = 2**20
_INDEX_BYTES = 16
"""Of a chunk's place in a shard."""

_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""How these are stored where zarr-python has to open them: it has no such types."""


@dataclass(frozen=True)
class TensorstoreTuned(Strategy):
    """One zarr v3 array per parameter, by TensorStore.

    Attributes:
        compression: `zstd` is blosc's, with byte shuffle: for shares slower than about half a GB/s for each core.
        level: of the compression.
        crc32c: a checksum for each chunk, verified on load.
        shard_mib: put the chunks of so many MiB into one file; 0 for a file for each chunk.
        chunk_mib: the most that a chunk has.
        concurrency: files in flight.
        plain_types: store bfloat16 and float8 as unsigned integers, which zarr-python can open.
    """

    compression: Literal["none", "zstd"] = "none"
    level: Annotated[int, Field(ge=1, le=9)] = 1
    crc32c: bool = False
    shard_mib: Annotated[int, Field(ge=0)] = 0
    chunk_mib: Annotated[int, Field(ge=1, le=1024)] = 64
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    plain_types: bool = False

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    @property
    def contradiction(self) -> str:
        """A level of nothing, or a shard smaller than its chunks."""
        if self.level != 1 and self.compression == "none":
            return 'level says nothing where compression = "none"'
        if 0 < self.shard_mib < self.chunk_mib:
            return f"a shard of {self.shard_mib} MiB can't hold a chunk of {self.chunk_mib} MiB"
        return ""

    @property
    def facts(self) -> Facts:
        """What it does."""
        chunks = f"{self.chunk_mib} MiB at most, along the first dimension"
        return Facts(
            files=f"1 per {'shard' if self.shard_mib else 'chunk'}, 1 per parameter, 1",
            format="zarr v3, one array per parameter, in a group",
            chunks=f"{chunks}; shards of {self.shard_mib} MiB" if self.shard_mib else chunks,
            compression="none" if self.compression == "none" else f"blosc zstd level {self.level} with shuffle",
            concurrency=f"{self.concurrency} files",
            dtype_on_disk="as in the state" + (", bfloat16 and float8 as unsigned integers" * self.plain_types),
            order_of_writes="all at once",
            synced="no",
            atomic="each file",
            checksum="verified" if self.crc32c else "none",
            partial_load="by tensor",
            other_readers="TensorStore, zarr-python"
            + ("" if self.plain_types else " (of types that it knows: not bfloat16, float8)"),
            best_for="An open format, in pieces, at nearly the disk's speed",
            ranks=RANKS,
            resharding="any number of ranks",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """As of one rank."""
        return self.footprint_together(Partition.of(layout, "replicated", 1))

    def footprint_together(self, partition: Partition) -> Footprint:
        """A file per chunk or shard, one for each array's metadata, one for the group; as if nothing compressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            size_bytes += 200 + 4 * len(json.dumps(tensor.name))
            if tensor.same_as is None:
                chunk, shard = self._shapes(tensor, partition)
                files = count(tensor.shape, shard)
                chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
                chunks = files * count(shard, chunk)
                size_bytes += chunks * (chunk_bytes + chunk_bytes // 1000 + 64 + _INDEX_BYTES) + files * 64 + 2048
                file_count += files + 1
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write everything, as one rank does."""
        return self.save_together(state, directory, alone(state), SingleProcess())

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:  # noqa: ARG002  # nobody waits for anybody
        """Write this rank's chunks, and the metadata of the arrays whose first rows it has."""
        self._write(state, directory, part)
        files = [directory / METADATA] if part.rank == 0 else []
        for each in _own(part.owned):
            array = zarr_group.path_of(directory, each.whole.name)
            files += [array / METADATA] if each.start == 0 else []
            _, shard = self._shapes(each.whole, part.partition)
            files += [array / zarr_group.chunk_name(place) for place in places(each, shard)]
        return files

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read everything, or the tensors of these names."""
        listed = zarr_group.read_group(directory)
        chosen = select(listed, names, directory)
        cached = page_cache.resident_fraction(directory) > zarr_group.RESIDENT_ENOUGH if chosen else True
        return self._read(directory, listed, dict.fromkeys(chosen), cached=cached)

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # the arrays tell all
        """Read the rows that this rank wants."""
        listed = zarr_group.read_group(directory)
        wanted = {each.whole.name: each for each in part.held}
        select(listed, wanted, directory)
        return self._read(directory, listed, wanted, cached=zarr_group.is_cached(directory, part.held))

    def _write(self, state: State, directory: Path, part: RankShards) -> None:
        """Open all arrays, write all arrays, wait for all of them."""
        import tensorstore as ts

        context = self._context()
        own = _own(part.owned)
        opened = [
            ts.open(
                _spec(directory, each.whole.name)
                | {"metadata": self._metadata(each.whole, part.partition), "store_data_equal_to_fill_value": True},
                context=context,
                **opening(each),
            )
            for each in own
        ]
        stores = zip(own, finished(opened), strict=True)
        finished(
            rows_in(store, each).write(
                _as_stored(state[each.whole.name], store.dtype.numpy_dtype), can_reference_source_data_indefinitely=True
            )
            for each, store in stores
        )
        if part.rank == 0:
            zarr_group.write_group(directory, part.partition.layout)

    def _read(
        self, directory: Path, listed: Mapping[str, Listed], wanted: Mapping[str, Shard | None], *, cached: bool
    ) -> State:
        """Open all arrays, read all into memory that exists already, wait for all of them."""
        import tensorstore as ts

        context = self._context(direct=not cached)
        owners = {listed[name].owner: each for name, each in wanted.items()}
        try:
            # Every chunk was stored, zeros too: one that is missing is lost.
            known = {"fill_missing_data_reads": False}
            opened = [ts.open(_spec(directory, name) | known, open=True, context=context) for name in owners]
            arrays = zip(owners.items(), finished(opened), strict=True)
            stores = {name: rows_in(store, each) for (name, each), store in arrays}
            layouts = [TensorLayout(name, tuple(store.shape), listed[name].dtype) for name, store in stores.items()]
            state = {layout.name: memory.empty(layout) for layout in layouts}
            with Beside() as beside:
                beside.submit(memory.prefault, state.values())
                finished(
                    ts.array(_as_stored(state[name], store.dtype.numpy_dtype)).write(store)
                    for name, store in stores.items()
                    if state[name].numel()
                )
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read {directory}: {error}") from error
        return {name: state[listed[name].owner] for name in wanted}

    def _context(self, *, direct: bool = False) -> Any:
        import tensorstore as ts

        return ts.Context({
            "cache_pool": {"total_bytes_limit": 0},
            "file_io_concurrency": {"limit": self.concurrency},
            "file_io_locking": {"mode": "none"},  # no file has two writers
            "file_io_mode": {"mode": "direct" if direct else "default"},  # of reads
            "file_io_sync": False,  # one pass at the end: `durable.flush`
        })  # fmt: skip

    def _shapes(self, tensor: TensorLayout, partition: Partition) -> tuple[list[int], list[int]]:
        """The shapes of a chunk and of a file."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        shard = for_ranks(lambda shape: self._wanted(shape, itemsize)[1], tensor, partition)
        chunk = for_ranks(lambda shape: self._wanted(shape, itemsize)[0], tensor, partition)
        if is_cut(tensor, partition):
            chunk[0] = nearest_divisor(shard[0], chunk[0])
        return chunk, shard

    def _wanted(self, shape: tuple[int, ...], itemsize: int) -> tuple[list[int], list[int]]:
        """The same for an array of that shape, whoever writes it."""
        chunk = chunk_shape(shape, itemsize, self.chunk_mib * _MIB)
        return chunk, shard_shape(shape, chunk, itemsize, self.shard_mib * _MIB)

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
            "data_type": _BITS.get(tensor.dtype, tensor.dtype) if self.plain_types else tensor.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "chunk_key_encoding": {
                "name": "default",
                "configuration": {"separator": "."},
            },  # no directory for each chunk
            "codecs": codecs,
            "attributes": {"dtype": tensor.dtype},
        }


def _own(share: tuple[Shard, ...]) -> list[Shard]:
    """Those that have an array: not the tied ones."""
    return [each for each in share if each.whole.same_as is None]


def _spec(directory: Path, name: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{zarr_group.path_of(directory, name)}/"},
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def _as_stored(tensor: torch.Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array of the dtype that the store has: its own, or an integer of the same width."""
    return dtypes.to_numpy(tensor).view(dtype)
