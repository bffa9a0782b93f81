"""TensorStore's OCDBT: zarr version 3 arrays in a database of a few large files, committed in one transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt.disk.listing import files_below
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import MIB, chunk_count, for_ranks, open_mode, row_chunks, rows_in
from ckpt.formats.shard_files import select
from ckpt.formats.tensorstore_futures import wait_all
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes, memory
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategy import Capabilities, Description, Footprint, Strategy, Syncs, Wanted

if TYPE_CHECKING:
    from ckpt.state.layout import State

_MANIFEST = "manifest.ocdbt"
_DATA = "d"
_NAMES = "names.json"

# orbax's values: the tree's nodes contain the arrays' zarr.json, and one node is enough for a model.
_CONFIG: dict[str, Any] = {
    "max_inline_value_bytes": 1024,
    "max_decoded_node_bytes": 100_000_000,
    "manifest_kind": "single",
}
_NODE_CACHE_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorstoreOcdbt(Strategy):
    """All arrays in one database, committed in one transaction.

    Attributes:
        target_file_mib: close a data file when it reaches this size; also the largest size of a chunk.
    """

    target_file_mib: Annotated[int, Field(ge=1)] = 128

    name: ClassVar[str] = "tensorstore_ocdbt"

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    @property
    def capabilities(self) -> Capabilities:
        """TensorStore syncs a file before it gets its name."""
        return Capabilities(can_reshard=True, syncs=Syncs.ALL_FILES, atomic_files=True)

    def describe(self) -> Description:
        """Describe the database."""
        return Description(
            files="1 per target file size, 1",
            format="zarr v3 arrays in an OCDBT database",
            chunks=f"along the first dimension, {self.target_file_mib} MiB at most",
            compression="none for tensors, zstd for the database's tree",
            concurrency="all arrays in one transaction, TensorStore's default context",
            dtype_on_disk="as in the state",
            order_of_writes="everything when the transaction is committed",
            other_readers="TensorStore",
            best_for="Few files on a parallel filesystem",
            ranks="one database, whose data lies in a directory for each rank",
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count the state's bytes, padding of last chunks, the files that these fill, and a few per tree."""
        data_bytes, tree_bytes, inline_bytes = 0, 2**16, 0
        for tensor in partition.layout:
            chunk = self._chunk(tensor, partition)
            chunks = chunk_count(tensor.shape, chunk)
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            data_bytes += chunks * chunk_bytes
            inline_bytes += chunks * chunk_bytes if chunk_bytes <= _CONFIG["max_inline_value_bytes"] else 0
            tree_bytes += chunks * 512 + 2048 + 2 * len(json.dumps(tensor.name))
        trees = 1
        if partition.count > 1:  # one per rank, and the common one, which contains theirs
            trees += partition.count
            tree_bytes += tree_bytes + inline_bytes + partition.count * 2**16
        files = 8 * trees + (data_bytes + tree_bytes) // (self.target_file_mib * MIB)
        return Footprint(files, data_bytes + tree_bytes + files * 4096)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:
        """Write a database of this rank's chunks; then rank 0 writes a common one, if there are several ranks.

        Its tree refers to the data files of the others, which stay in place: no data is copied.
        """
        count = shards.partition.count
        if count == 1:
            self._write_database(state, directory, shards)
            return [Path(entry.path) for entry in files_below(directory)]
        parts = [directory / filenames.of_rank("rank", rank, count) for rank in range(count)]
        parts[shards.rank].mkdir()
        self._write_database(state, parts[shards.rank], shards)
        group.barrier()
        files = [Path(entry.path) for entry in files_below(parts[shards.rank])]
        if shards.rank == 0:
            self._merge(directory, parts)
            files += [directory / _MANIFEST, *(Path(entry.path) for entry in files_below(directory / _DATA))]
        return files

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # the arrays have everything
        """Open all arrays, read the wanted rows of all, and only then wait."""
        import tensorstore as ts

        if not (directory / _MANIFEST).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_MANIFEST}")
        context = _context()
        database = _database(directory)
        try:
            store = ts.KvStore.open(database, context=context).result()
            chosen = select(json.loads(store[_NAMES]), wanted, directory)
            specs = [{**_array(database, name), "fill_missing_data_reads": False} for name in chosen]
            stores = zip(chosen, wait_all(ts.open(spec, context=context) for spec in specs), strict=True)
            arrays = wait_all(rows_in(store, (wanted or {}).get(name)).read() for name, store in stores)
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read the database in {directory}: {error}") from error
        return {name: memory.own(dtypes.to_torch(array)) for name, array in zip(chosen, arrays, strict=True)}

    def _write_database(self, state: State, directory: Path, shards: RankShards) -> None:
        """Pass all arrays to one transaction, without a copy, and commit it."""
        import tensorstore as ts

        context = _context()
        transaction = ts.Transaction(atomic=True)
        database = self._new_database(directory)
        stores = wait_all(
            ts.open(
                {
                    **_array(database, shard.whole.name),
                    "metadata": self._metadata(shard.whole, shards.partition),
                    "store_data_equal_to_fill_value": True,
                },
                context=context,
                transaction=transaction,
                **open_mode(shard),
            )
            for shard in shards.owned
        )
        writes = [
            rows_in(store, shard).write(
                dtypes.to_numpy(state[shard.whole.name]), can_reference_source_data_indefinitely=True
            )
            for store, shard in zip(stores, shards.owned, strict=True)
        ]
        if shards.rank == 0:
            names = json.dumps([tensor.name for tensor in shards.partition.layout])
            store = ts.KvStore.open(database, context=context).result().with_transaction(transaction)
            store.write(_NAMES, names.encode()).result()
        transaction.commit_async().result()
        wait_all(writes)

    def _merge(self, directory: Path, parts: Iterable[Path]) -> None:
        """Create a database that contains those of the ranks, in directories below it, by reference."""
        import tensorstore as ts

        context = _context()
        transaction = ts.Transaction(atomic=True)
        whole = ts.KvStore.open(self._new_database(directory), context=context).result()
        stores = wait_all(ts.KvStore.open(_database(part), context=context) for part in parts)
        wait_all(store.experimental_copy_range_to(whole.with_transaction(transaction)) for store in stores)
        transaction.commit_async().result()

    def _new_database(self, directory: Path) -> dict[str, Any]:
        return {**_database(directory), "config": _CONFIG, "target_data_file_size": self.target_file_mib * MIB}

    def _metadata(self, tensor: TensorLayout, partition: Partition) -> dict[str, Any]:
        chunk = self._chunk(tensor, partition)
        return {
            "shape": list(tensor.shape),
            "data_type": tensor.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }

    def _chunk(self, tensor: TensorLayout, partition: Partition) -> list[int]:
        """Split the first dimension into equal parts: splitting any other would cost a copy."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        return for_ranks(lambda shape: row_chunks(shape, itemsize, self.target_file_mib * MIB), tensor, partition)


def _context() -> Any:
    import tensorstore as ts

    # Without a cache, TensorStore would read the tree's nodes again for every array.
    return ts.Context({"cache_pool#nodes": {"total_bytes_limit": _NODE_CACHE_BYTES}})


def _database(directory: Path) -> dict[str, Any]:
    return {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{directory}/"},
        "cache_pool": "cache_pool#nodes",
    }


def _array(database: dict[str, Any], name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {**database, "path": f"{filenames.to_filename(name)}/"}}
