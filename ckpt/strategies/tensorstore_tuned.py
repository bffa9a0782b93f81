"""TensorStore as it can be: one standard zarr v3 array per parameter, all in flight, nothing copied that need not be.

    directory/zarr.json            a zarr group; its attributes name the tensors, in the order of the state
    directory/<name>/zarr.json     an array per tensor, native dtype
    directory/<name>/c.0.0         its chunks, split along the first dimension

What made it fast: no upcast, no copy (`can_reference_source_data_indefinitely`, which takes whole contiguous chunks),
no lock files, one sync pass at the end, every array opened before the first is waited for, and reads into huge-page
memory that exists already.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt import dtypes, filenames, storage
from ckpt.direct_io import ALIGNMENT, aligned_buffer, populate
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, TensorLayout
from ckpt.strategies._futures import finished
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ckpt.state import State

_GROUP = "zarr.json"
_ATTRIBUTE = "ckpt"
_MIB = 2**20
_RESIDENT_ENOUGH = 0.5
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
    marker: ClassVar[str] = _GROUP

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
        )

    def footprint(self, layout: Layout) -> Footprint:
        """A file per chunk or shard, one for each array's metadata, one for the group; as if nothing compressed."""
        own = [tensor for tensor in layout if tensor.same_as is None]
        file_count, size_bytes = 1, 4096
        for tensor in own:
            chunk, shard = self._shapes(tensor)
            chunks, files = _count(tensor.shape, chunk), _count(tensor.shape, shard)
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            chunks = files * _count(shard, chunk)
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 1000 + 64 + _INDEX_BYTES) + files * 64 + 2048
            file_count += files + 1
        size_bytes += sum(200 + 4 * len(json.dumps(tensor.name)) for tensor in layout)
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> None:
        """Open all arrays, write all arrays, wait for all of them."""
        import tensorstore as ts

        context = self._context()
        tied = dtypes.tied(state)
        opened: dict[str, Any] = {}
        for name, tensor in state.items():
            if name not in tied:
                layout = TensorLayout(name, tuple(tensor.shape), dtypes.name_of(tensor))
                spec = _spec(directory, name) | {
                    "metadata": self._metadata(layout),
                    "store_data_equal_to_fill_value": True,
                }
                opened[name] = ts.open(spec, create=True, open=False, context=context)
        stores = dict(zip(opened, finished(opened.values()), strict=True))
        finished(
            store.write(_as_stored(state[name], store.dtype.numpy_dtype), can_reference_source_data_indefinitely=True)
            for name, store in stores.items()
        )
        names = [
            [name, dtypes.name_of(tensor), tied[name][0] if name in tied else name] for name, tensor in state.items()
        ]
        group = {"zarr_format": 3, "node_type": "group", "attributes": {_ATTRIBUTE: {"tensors": names}}}
        storage.write_whole(directory / _GROUP, json.dumps(group).encode(), sync=False)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Open all arrays, read all into memory that exists already, wait for all of them."""
        import tensorstore as ts

        listed = _read_group(directory)
        chosen = select(listed, names, directory)
        owners = {listed[name].owner for name in chosen}
        cached = storage.resident_fraction(directory) > _RESIDENT_ENOUGH if owners else True
        context = self._context(direct=not cached)
        try:
            # Every chunk was stored, zeros too: one that is missing is lost.
            known = {"fill_missing_data_reads": False}
            opened = {name: ts.open(_spec(directory, name) | known, open=True, context=context) for name in owners}
            stores = dict(zip(opened, finished(opened.values()), strict=True))
            state, memory = _allocate({name: listed[name].dtype for name in owners}, stores)
            with ThreadPoolExecutor(1) as beside:
                beside.submit(populate, memory)
                finished(
                    ts.array(_as_stored(state[name], store.dtype.numpy_dtype)).write(store)
                    for name, store in stores.items()
                    if state[name].numel()
                )
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read {directory}: {error}") from error
        return {name: state[listed[name].owner] for name in chosen}

    def _context(self, *, direct: bool = False) -> Any:
        import tensorstore as ts

        return ts.Context({
            "cache_pool": {"total_bytes_limit": 0},
            "file_io_concurrency": {"limit": self.concurrency},
            "file_io_locking": {"mode": "none"},  # a new directory has one writer
            "file_io_mode": {"mode": "direct" if direct else "default"},  # of reads
            "file_io_sync": False,  # one pass at the end: `storage.flush`
        })  # fmt: skip

    def _shapes(self, tensor: TensorLayout) -> tuple[list[int], list[int]]:
        """The shapes of a chunk and of a file."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        chunk = chunk_shape(tensor.shape, itemsize, self.chunk_mib * _MIB)
        shard = list(chunk)
        chunk_bytes = itemsize * math.prod(chunk)
        for axis, (size, part) in enumerate(zip(tensor.shape, chunk, strict=True)):
            if part < size:
                shard[axis] *= min(-(-size // part), max(1, self.shard_mib * _MIB // chunk_bytes))
                break
        return chunk, shard

    def _metadata(self, tensor: TensorLayout) -> dict[str, Any]:
        chunk, shard = self._shapes(tensor)
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


def chunk_shape(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """Split along the first dimension that has to be split, so that a chunk is one piece of the tensor's memory.

    Where a divisor of the dimension serves nearly as well as the largest part, it is taken: no chunk is padded then.
    """
    chunk = [max(1, size) for size in shape]
    for axis, size in enumerate(chunk):
        row_bytes = itemsize * math.prod(chunk[axis + 1 :])
        most = most_bytes // row_bytes
        if most >= size:
            break
        if most < 1:
            chunk[axis] = 1
            continue
        divisors = (part for part in range(most, most // 2, -1) if size % part == 0)
        chunk[axis] = next(divisors, -(-size // -(-size // most)))
        break
    return chunk


def _count(shape: Collection[int], part: Collection[int]) -> int:
    """How many parts of that shape cover a shape."""
    return math.prod(-(-size // each) for size, each in zip(shape, part, strict=True))


def _spec(directory: Path, name: str) -> dict[str, Any]:
    filename = filenames.to_filename(name)
    if filename == _GROUP:
        filename = filename.replace(".", "%2E")
    return {
        "driver": "zarr3",
        # The path comes from the name, not from the file's text: that could point anywhere.
        "kvstore": {"driver": "file", "path": f"{directory / filename}/"},
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def _as_stored(tensor: torch.Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array of the dtype that the store has: its own, or an integer of the same width."""
    return dtypes.to_numpy(tensor).view(dtype)


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the group says of a tensor."""

    dtype: str
    owner: str
    """The name whose array holds it: its own, or the one that it is tied to."""


def _read_group(directory: Path) -> dict[str, _Listed]:
    """What the group lists, in the order of the state."""
    path = directory / _GROUP
    try:
        tensors = json.loads(path.read_text())["attributes"][_ATTRIBUTE]["tensors"]
        listed = {str(name): _Listed(str(dtype), str(owner)) for name, dtype, owner in tensors}
        if any(listed[each.owner].owner != each.owner for each in listed.values()):
            raise ValueError("its tied names point nowhere")  # noqa: TRY301  # with the other damages
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_GROUP}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or not of this package: {type(error).__name__}: {error}") from error
    return listed


def _allocate(dtype_of: dict[str, str], stores: dict[str, Any]) -> tuple[State, mmap.mmap]:
    """Memory for these arrays, in one piece."""
    layouts = [TensorLayout(name, tuple(stores[name].shape), dtype) for name, dtype in dtype_of.items()]
    ends = list(accumulate((-(-layout.size_bytes // 64) * 64 for layout in layouts), initial=0))
    memory = aligned_buffer(max(ALIGNMENT, ends[-1]))
    return {each.name: dtypes.view(memory, start, each) for each, start in zip(layouts, ends, strict=False)}, memory
