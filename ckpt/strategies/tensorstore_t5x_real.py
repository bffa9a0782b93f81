"""TensorStore as T5X really uses it (t5x/checkpoints.py): every array at once, in chunks that divide the array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.errors import CheckpointError
from ckpt.formats.chunks import RANKS, rows_in
from ckpt.formats.tensorstore_futures import finished
from ckpt.state import dtypes, memory
from ckpt.state.sharding import RankShards, Shard
from ckpt.strategies._zarr_per_parameter import ZarrPerParameter, opening_of, spec_to_open, write_metadata
from ckpt.strategy import Facts

if TYPE_CHECKING:
    from ckpt.state.layout import State

_TARGET_CHUNK_BYTES = 64 * 2**20
_CONCURRENCY = 128


@dataclass(frozen=True)
class TensorstoreT5xReal(ZarrPerParameter):
    """TensorStore with T5X's settings.

    Attributes:
        dtype: `float32` for what T5X does by default with 16-bit parameters; `native` for its `save_dtype=None`.
        gzip_level: 1, which is what T5X gets by giving none, to 9; 0 stores.
    """

    dtype: Literal["float32", "native"] = "float32"
    gzip_level: Annotated[int, Field(ge=0, le=9)] = 1

    chunks_before_the_cast: ClassVar[bool] = True

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v2, one array per parameter",
            chunks="divisors of the shape, 64 MiB at most before the cast",
            compression=f"gzip level {self.gzip_level}",
            concurrency=f"all parameters at once, file_io_concurrency {_CONCURRENCY} for each",
            dtype_on_disk="float32 for 16-bit floats, else as in the state" if self.upcasts else "as in the state",
            order_of_writes="all parameters at once",
            synced="files",
            atomic="each file",
            checksum="verified",
            partial_load="by tensor",
            other_readers="TensorStore, zarr-python",
            best_for="Production, scale",
            ranks=RANKS,
            resharding="any number of ranks",
        )

    @property
    def upcasts(self) -> bool:
        """As the option says."""
        return self.dtype == "float32"

    def chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:
        """Take the next smaller divisor of the largest dimension until a chunk has at most 64 MiB before the cast."""
        chunk = [max(1, size) for size in shape]
        while math.prod(chunk) * bytes_per_element > _TARGET_CHUNK_BYTES and max(chunk) > 1:
            largest = chunk.index(max(chunk))
            chunk[largest] = max(part for part in _divisors(shape[largest]) if part < chunk[largest])
        return chunk

    def zarr_compressor(self) -> dict[str, Any]:
        """Gzip at the level asked for."""
        return {"compressor": {"id": "gzip", "level": self.gzip_level}}

    def context(self) -> dict[str, Any]:
        """128 file operations at once; T5X makes a context for each array, so that these add up."""
        return {"file_io_concurrency": {"limit": _CONCURRENCY}}

    def _write(self, state: State, directory: Path, part: RankShards, stored: Mapping[str, str]) -> None:
        """Open all arrays, write all, and only then wait; the cast happens on the way to disk."""
        import tensorstore as ts

        opened = [
            ts.open(
                self.spec_to_create(directory, each, stored[each.whole.name], part.partition),
                context=ts.Context(self.context()),
                **opening_of(each, part),
            )
            for each in part.owned
        ]
        stores = finished(opened)
        finished(
            ts.cast(rows_in(store, each), each.whole.dtype).write(dtypes.to_numpy(state[each.whole.name]))
            for store, each in zip(stores, part.owned, strict=True)
        )
        if part.rank == 0:
            write_metadata(directory, part.partition.layout)

    def _read(self, directory: Path, dtype_of: Mapping[str, str], wanted: Mapping[str, Shard | None]) -> State:
        """Open all arrays, read all, and only then wait; as T5X does, with TensorStore's default context."""
        import tensorstore as ts

        try:
            stores = finished(ts.open(spec_to_open(directory, name)) for name in wanted)
            opened = zip(wanted.items(), stores, strict=True)
            arrays = finished(ts.cast(rows_in(store, each), dtype_of[name]).read() for (name, each), store in opened)
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read the parameters of {directory}: {error}") from error
        return {name: memory.own(dtypes.to_torch(array)) for name, array in zip(wanted, arrays, strict=True)}


def _divisors(number: int) -> set[int]:
    small = {part for part in range(1, math.isqrt(number) + 1) if number % part == 0}
    return small | {number // part for part in small}
