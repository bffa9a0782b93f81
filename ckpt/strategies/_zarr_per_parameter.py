"""What the strategies after the document and T5X share: one zarr (version 2) array per parameter.

The document's two handle one parameter at a time and differ in the chunk shape, the compressor and the context; they
store floating-point parameters of 16 bits as float32 and come back by a cast. `metadata.json` says to what.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import alone, count, for_ranks, is_cut, opening, places, rows_in
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategy import Footprint, Strategy

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
    """A loop over the parameters that opens, writes and waits for one zarr array after the other."""

    requires: ClassVar[tuple[str, ...]] = ("torch", "tensorstore", "ml_dtypes")

    chunks_before_the_cast: ClassVar[bool] = False
    """Whether `chunk_shape` is told the bytes of an element of the state, rather than of what is stored."""

    @property
    def upcasts(self) -> bool:
        """Whether 16-bit floats are stored as float32."""
        return True

    @abstractmethod
    def chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:
        """The shape of the chunks of an array of that shape; as many dimensions, none of them 0."""

    @abstractmethod
    def zarr_compressor(self) -> dict[str, Any]:
        """What to add to the array's metadata for the compressor."""

    @abstractmethod
    def context(self) -> dict[str, Any]:
        """TensorStore's context: its concurrency limits."""

    def footprint(self, layout: Layout) -> Footprint:
        """As of one rank."""
        return self.footprint_together(Partition.of(layout, "replicated", 1))

    def footprint_together(self, partition: Partition) -> Footprint:
        """A file per chunk, one for each array's metadata, and `metadata.json`; bytes as if nothing compressed."""
        file_count, size_bytes = 1, 4096
        for tensor in partition.layout:
            stored = "float32" if self.upcasts and tensor.dtype in _UPCAST else tensor.dtype
            chunk = self._chunk(tensor, stored, partition)
            chunks = count(tensor.shape, chunk)
            file_count += chunks + 1
            # A chunk at the edge is stored whole. Compressors add a few bytes to what they can't compress.
            chunk_bytes = math.prod(chunk) * dtypes.BYTES_PER_ELEMENT[stored]
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 1000 + 64)
            size_bytes += 1024 + 2 * len(json.dumps(tensor.name))  # the array's metadata, and its entry in ours
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write everything, as one rank does."""
        return self.save_together(state, directory, alone(state), SingleProcess())

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:
        """Write this rank's chunks, and the metadata of the arrays whose first rows it has."""
        stored = self._stored_dtypes(state, part, ranks)
        self._write(state, directory, part, stored)
        files = [directory / _METADATA] if part.rank == 0 else []
        for each in part.owned:
            array = directory / _filename(each.whole.name)
            files += [array / ".zarray"] if each.start == 0 else []
            chunk = self._chunk(each.whole, stored[each.whole.name], part.partition)
            files += [array / (".".join(place) or "0") for place in places(each, chunk)]
        return files

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read everything, or the parameters of these names."""
        dtype_of = read_metadata(directory)
        return self._read(directory, dtype_of, dict.fromkeys(select(dtype_of, names, directory)))

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # the arrays tell all
        """Read the rows that this rank wants."""
        dtype_of = read_metadata(directory)
        wanted = {each.whole.name: each for each in part.held}
        select(dtype_of, wanted, directory)
        return self._read(directory, dtype_of, wanted)

    def _write(self, state: State, directory: Path, part: RankShards, stored: Mapping[str, str]) -> None:
        """Write one parameter at a time, each with a wait for its end, then the metadata."""
        import tensorstore as ts

        context = ts.Context(self.context())
        for each in part.owned:
            tensor = state[each.whole.name]
            array = dtypes.to_numpy(tensor)
            if stored[each.whole.name] != each.whole.dtype:
                array = tensor.detach().cpu().float().contiguous().numpy()
            spec = self.spec_to_create(directory, each, stored[each.whole.name], part.partition)
            store = ts.open(spec, context=context, **opening_of(each, part)).result()
            rows_in(store, each).write(array).result()
        if part.rank == 0:
            write_metadata(directory, part.partition.layout)

    def _read(self, directory: Path, dtype_of: Mapping[str, str], wanted: Mapping[str, Shard | None]) -> State:
        """Read one parameter at a time, each with a wait, a copy and the cast back."""
        import tensorstore as ts

        context = ts.Context(self.context())
        state: State = {}
        for name, each in wanted.items():
            try:
                store = ts.open(spec_to_open(directory, name), context=context).result()
                array = rows_in(store, each).read().result()
            except Exception as error:  # TensorStore raises one of many kinds
                raise CheckpointError(f"can't read parameter {name!r} of {directory}: {error}") from error
            state[name] = memory.own(dtypes.to_torch(array.copy()).to(dtypes.torch_dtype(dtype_of[name])))
        return state

    def _stored_dtypes(self, state: State, part: RankShards, ranks: ProcessGroup) -> dict[str, str]:
        """The names of the dtypes on disk: of what this rank has, and the same on all that have rows of a tensor."""
        found = {name: self.stored_dtype(tensor) for name, tensor in state.items()}
        shared = {
            tensor.name: tensor.dtype
            for tensor in part.partition.layout
            if self.upcasts and tensor.dtype in _UPCAST and is_cut(tensor, part.partition)
        }
        if not shared:
            return found
        own = [name for name, dtype in found.items() if shared.get(name) == dtype]
        kept = {name for names in ranks.all_gather(own) for name in names}
        return {name: shared[name] if name in kept else dtype for name, dtype in found.items()}

    def stored_dtype(self, tensor: torch.Tensor) -> str:
        """The name of the dtype on disk, of a tensor that no other rank has rows of."""
        import torch

        name = dtypes.name_of(tensor)
        # The cast back makes one NaN of all NaNs, so a tensor with a NaN stays as it is: the sum tells in one pass.
        if self.upcasts and name in _UPCAST and not torch.isnan(tensor.sum(dtype=torch.float32)):
            return "float32"
        return name

    def _chunk(self, tensor: TensorLayout, stored: str, partition: Partition) -> list[int]:
        """The shape of a parameter's chunks where it is stored in that dtype."""
        itemsize = dtypes.BYTES_PER_ELEMENT[tensor.dtype if self.chunks_before_the_cast else stored]
        return for_ranks(lambda shape: self.chunk_shape(shape, itemsize), tensor, partition)

    def spec_to_create(self, directory: Path, each: Shard, stored: str, partition: Partition) -> dict[str, Any]:
        """TensorStore's spec of a parameter's new array."""
        return {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(directory / _filename(each.whole.name))},
            "metadata": {
                "shape": list(each.whole.shape),
                "dtype": _ZARR_DTYPE.get(stored, stored),
                "chunks": self._chunk(each.whole, stored, partition),
                **self.zarr_compressor(),
            },
        }


def opening_of(each: Shard, part: RankShards) -> dict[str, Any]:
    """How TensorStore opens a parameter's new array; what others write there is deleted by no rank."""
    return opening(each) | ({"delete_existing": True} if part.partition.count == 1 else {})


def spec_to_open(directory: Path, name: str) -> dict[str, Any]:
    """TensorStore's spec of a parameter's array that exists."""
    return {
        "driver": "zarr",
        # The path comes from the name, not from the file's text: that could point anywhere.
        "kvstore": {"driver": "file", "path": str(directory / _filename(name))},
        # The arrays have no fill value, so every chunk is stored: one that is missing is lost, not zero.
        "fill_missing_data_reads": False,
    }


def write_metadata(directory: Path, layout: Layout) -> None:
    """Say which parameters there are, in which order, and of which dtype."""
    entries = {tensor.name: {"file": _filename(tensor.name), "dtype": tensor.dtype} for tensor in layout}
    metadata = {
        "format": "one zarr array per parameter",
        "param_count": len(entries),
        "param_names": list(entries),
        "params": entries,
    }
    # The one file that TensorStore does not write, and so does not sync.
    durable.write_atomically(directory / _METADATA, json.dumps(metadata).encode(), sync=True)


def read_metadata(directory: Path) -> dict[str, str]:
    """The dtype of each parameter, in the order of the state.

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
