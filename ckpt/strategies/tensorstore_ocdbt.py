"""TensorStore's OCDBT: zarr version 3 arrays in a database of a few large files, committed in one transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt import dtypes, filenames
from ckpt.errors import CheckpointError
from ckpt.layout import Layout
from ckpt.strategies._futures import finished
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    import numpy as np

    from ckpt.state import State

_MANIFEST = "manifest.ocdbt"
_NAMES = "names.json"
_MIB = 2**20

# As orbax has them: an array's zarr.json lies in the tree's node itself, and one node holds all of a model's.
_CONFIG = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000, "manifest_kind": "single"}
_NODE_CACHE_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorstoreOcdbt(Strategy):
    """All arrays in one database, which has them all or none.

    Attributes:
        target_file_mib: a data file is closed when it has so many MiB; also the most that a chunk has.
    """

    target_file_mib: Annotated[int, Field(ge=1)] = 128

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1 per target file size, 1",
            format="zarr v3 arrays in an OCDBT database",
            chunks=f"along the first dimension, {self.target_file_mib} MiB at most",
            compression="none for tensors, zstd for the database's tree",
            concurrency="all arrays in one transaction, TensorStore's default context",
            dtype_on_disk="as in the state",
            order_of_writes="everything when the transaction is committed",
            synced="files",
            atomic="each file",
            checksum="none",
            partial_load="by tensor",
            other_readers="TensorStore",
            best_for="Few files on a parallel filesystem",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """The state's bytes with the last chunks padded, a file whenever that is enough, and a few for the tree."""
        size_bytes = 2**16
        for tensor in layout:
            itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            chunk = self._chunk_shape(tensor.shape, itemsize)
            chunks = math.prod(-(-size // part) for size, part in zip(tensor.shape, chunk, strict=True))
            size_bytes += chunks * (math.prod(chunk) * itemsize + 512) + 2048 + 2 * len(json.dumps(tensor.name))
        files = 8 + size_bytes // (self.target_file_mib * _MIB)
        return Footprint(files, size_bytes + files * 4096)

    def save(self, state: State, directory: Path) -> None:
        """Hand everything to one transaction, without a copy, and commit it."""
        import tensorstore as ts

        context = _context()
        transaction = ts.Transaction(atomic=True)
        database = {**_database(directory), "config": _CONFIG, "target_data_file_size": self.target_file_mib * _MIB}
        arrays = [dtypes.to_numpy(tensor) for tensor in state.values()]
        stores = finished(
            ts.open(
                {**_array(database, name), "metadata": self._metadata(array), "store_data_equal_to_fill_value": True},
                create=True,
                context=context,
                transaction=transaction,
            )
            for name, array in zip(state, arrays, strict=True)
        )
        writes = [
            store.write(array, can_reference_source_data_indefinitely=True)
            for store, array in zip(stores, arrays, strict=True)
        ]
        names = ts.KvStore.open(database, context=context).result().with_transaction(transaction)
        names.write(_NAMES, json.dumps(list(state)).encode()).result()
        transaction.commit_async().result()
        finished(writes)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Open all arrays, read all, and only then wait."""
        import tensorstore as ts

        if not (directory / _MANIFEST).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_MANIFEST}")
        context = _context()
        database = _database(directory)
        try:
            store = ts.KvStore.open(database, context=context).result()
            chosen = select(json.loads(store[_NAMES]), names, directory)
            specs = [{**_array(database, name), "fill_missing_data_reads": False} for name in chosen]
            stores = finished(ts.open(spec, context=context) for spec in specs)
            arrays = finished(store.read() for store in stores)
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read the database in {directory}: {error}") from error
        return {name: dtypes.to_torch(array) for name, array in zip(chosen, arrays, strict=True)}

    def _metadata(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        chunk = self._chunk_shape(array.shape, array.dtype.itemsize)
        return {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }

    def _chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:
        """Equal parts of the first dimension, as many as it takes; any other cut would cost a copy."""
        if 0 in shape or not shape:
            return [max(1, size) for size in shape]
        parts = -(-math.prod(shape) * bytes_per_element // (self.target_file_mib * _MIB))
        return [-(-shape[0] // parts), *shape[1:]]


def _context() -> Any:
    import tensorstore as ts

    # Without a cache, every array would read the tree's nodes again.
    return ts.Context({"cache_pool#nodes": {"total_bytes_limit": _NODE_CACHE_BYTES}})


def _database(directory: Path) -> dict[str, Any]:
    return {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{directory}/"},
        "cache_pool": "cache_pool#nodes",
    }


def _array(database: dict[str, Any], name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {**database, "path": f"{filenames.to_filename(name)}/"}}
