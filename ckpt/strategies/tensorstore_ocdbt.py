"""TensorStore's OCDBT: zarr version 3 arrays in a database of a few large files, committed in one transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt.disk.listing import files_below
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import alone, count, for_ranks, opening, rows_in
from ckpt.formats.shard_files import select
from ckpt.formats.tensorstore_futures import finished
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Facts, Footprint, Strategy, directory_of

if TYPE_CHECKING:
    from ckpt.state.layout import State

_MANIFEST = "manifest.ocdbt"
_DATA = "d"
_NAMES = "names.json"
_MIB = 2**20

# As orbax has them: an array's zarr.json lies in the tree's node itself, and one node holds all of a model's.
_CONFIG: dict[str, Any] = {
    "max_inline_value_bytes": 1024,
    "max_decoded_node_bytes": 100_000_000,
    "manifest_kind": "single",
}
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
            ranks="one database, whose data lies in a directory for each rank",
            resharding="any number of ranks",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """As of one rank."""
        return self.footprint_together(Partition.of(layout, "replicated", 1))

    def footprint_together(self, partition: Partition) -> Footprint:
        """The state's bytes with the last chunks padded, a file whenever that is enough, and a few for each tree."""
        data_bytes, tree_bytes, inline_bytes = 0, 2**16, 0
        for tensor in partition.layout:
            chunk = self._chunk(tensor, partition)
            chunks = count(tensor.shape, chunk)
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            data_bytes += chunks * chunk_bytes
            inline_bytes += chunks * chunk_bytes if chunk_bytes <= _CONFIG["max_inline_value_bytes"] else 0
            tree_bytes += chunks * 512 + 2048 + 2 * len(json.dumps(tensor.name))
        trees = 1
        if partition.count > 1:  # each rank's, and the one of all, which has everything that lies in theirs
            trees += partition.count
            tree_bytes += tree_bytes + inline_bytes + partition.count * 2**16
        files = 8 * trees + (data_bytes + tree_bytes) // (self.target_file_mib * _MIB)
        return Footprint(files, data_bytes + tree_bytes + files * 4096)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write everything, as one rank does."""
        return self.save_together(state, directory, alone(state), SingleProcess())

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:
        """Write a database of this rank's chunks; the first rank makes one of all, once they are written.

        Its tree names the files of the others, which stay where they are: no data is copied.
        """
        size = part.partition.count
        own = directory / directory_of(part.rank, size) if size > 1 else directory
        own.mkdir(exist_ok=True)
        self._write(state, own, part)
        if size > 1:
            ranks.barrier()
        files = [Path(entry.path) for entry in files_below(own)]
        if size > 1 and part.rank == 0:
            self._merge(directory, [directory / directory_of(rank, size) for rank in range(size)])
            files += [directory / _MANIFEST, *(Path(entry.path) for entry in files_below(directory / _DATA))]
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
        """Hand everything to one transaction, without a copy, and commit it."""
        import tensorstore as ts

        context = _context()
        transaction = ts.Transaction(atomic=True)
        database = self._new_database(directory)
        stores = finished(
            ts.open(
                {
                    **_array(database, each.whole.name),
                    "metadata": self._metadata(each.whole, part.partition),
                    "store_data_equal_to_fill_value": True,
                },
                context=context,
                transaction=transaction,
                **opening(each),
            )
            for each in part.owned
        )
        writes = [
            rows_in(store, each).write(
                dtypes.to_numpy(state[each.whole.name]), can_reference_source_data_indefinitely=True
            )
            for store, each in zip(stores, part.owned, strict=True)
        ]
        if part.rank == 0:
            names = json.dumps([tensor.name for tensor in part.partition.layout])
            store = ts.KvStore.open(database, context=context).result().with_transaction(transaction)
            store.write(_NAMES, names.encode()).result()
        transaction.commit_async().result()
        finished(writes)

    def _merge(self, directory: Path, parts: Iterable[Path]) -> None:
        """Make one database of several below it, of which it needs the data files alone."""
        import tensorstore as ts

        context = _context()
        transaction = ts.Transaction(atomic=True)
        whole = ts.KvStore.open(self._new_database(directory), context=context).result()
        stores = finished(ts.KvStore.open(_database(part), context=context) for part in parts)
        finished(store.experimental_copy_range_to(whole.with_transaction(transaction)) for store in stores)
        transaction.commit_async().result()

    def _read(self, directory: Path, names: Collection[str] | None, rows: Mapping[str, Shard]) -> State:
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
            stores = zip(chosen, finished(ts.open(spec, context=context) for spec in specs), strict=True)
            arrays = finished(rows_in(store, rows.get(name)).read() for name, store in stores)
        except CheckpointError:
            raise
        except Exception as error:  # TensorStore raises one of many kinds
            raise CheckpointError(f"can't read the database in {directory}: {error}") from error
        return {name: memory.own(dtypes.to_torch(array)) for name, array in zip(chosen, arrays, strict=True)}

    def _new_database(self, directory: Path) -> dict[str, Any]:
        return {**_database(directory), "config": _CONFIG, "target_data_file_size": self.target_file_mib * _MIB}

    def _metadata(self, tensor: TensorLayout, partition: Partition) -> dict[str, Any]:
        chunk = self._chunk(tensor, partition)
        return {
            "shape": list(tensor.shape),
            "data_type": tensor.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }

    def _chunk(self, tensor: TensorLayout, partition: Partition) -> list[int]:
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
        return for_ranks(lambda shape: self._chunk_shape(shape, itemsize), tensor, partition)

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
