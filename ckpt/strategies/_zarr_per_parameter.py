"""What the strategies after the document and T5X share: one zarr (version 2) array per parameter.

The document's two handle one parameter at a time and differ in the chunk shape, the compressor and the context; they
store floating-point parameters of 16 bits as float32 and come back by a cast. `metadata.json` says to what.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt import dtypes, filenames, storage
from ckpt.errors import CheckpointError
from ckpt.layout import Layout
from ckpt.strategy import Footprint, Strategy, select

if TYPE_CHECKING:
    import torch

    from ckpt.state import State

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

    marker: ClassVar[str] = _METADATA

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
        """A file per chunk, one for each array's metadata, and `metadata.json`; bytes as if nothing compressed."""
        file_count, size_bytes = 1, 4096
        for tensor in layout:
            native = dtypes.BYTES_PER_ELEMENT[tensor.dtype]
            itemsize = 4 if self.upcasts and tensor.dtype in _UPCAST else native
            chunk = self.chunk_shape(tensor.shape, native if self.chunks_before_the_cast else itemsize)
            chunks = math.prod(-(-size // part) for size, part in zip(tensor.shape, chunk, strict=True))
            file_count += chunks + 1
            # A chunk at the edge is stored whole. Compressors add a few bytes to what they can't compress.
            chunk_bytes = math.prod(chunk) * itemsize
            size_bytes += chunks * (chunk_bytes + chunk_bytes // 1000 + 64)
            size_bytes += 1024 + 2 * len(json.dumps(tensor.name))  # the array's metadata, and its entry in ours
        return Footprint(file_count, size_bytes)

    def save(self, state: State, directory: Path) -> None:
        """Write one parameter at a time, each with a wait for its end, then the metadata."""
        import tensorstore as ts

        context = ts.Context(self.context())
        for name, tensor in state.items():
            array = dtypes.to_numpy(tensor)
            if self.stored_dtype(tensor) != dtypes.name_of(tensor):
                array = tensor.detach().cpu().float().contiguous().numpy()
            spec = self.spec_to_create(directory, name, tensor)
            ts.open(spec, create=True, delete_existing=True, context=context).result().write(array).result()
        write_metadata(directory, state)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read one parameter at a time, each with a wait, a copy and the cast back."""
        import tensorstore as ts

        context = ts.Context(self.context())
        state: State = {}
        dtype_of = read_metadata(directory)
        for name in select(dtype_of, names, directory):
            try:
                store = ts.open(spec_to_open(directory, name), context=context).result()
                array = store.read().result()
            except Exception as error:  # TensorStore raises one of many kinds
                raise CheckpointError(f"can't read parameter {name!r} of {directory}: {error}") from error
            state[name] = dtypes.to_torch(array.copy()).to(dtypes.torch_dtype(dtype_of[name]))
        return state

    def stored_dtype(self, tensor: torch.Tensor) -> str:
        """The name of the dtype on disk."""
        import torch

        name = dtypes.name_of(tensor)
        # The cast back makes one NaN of all NaNs, so a tensor with a NaN stays as it is: the sum tells in one pass.
        if self.upcasts and name in _UPCAST and not torch.isnan(tensor.sum(dtype=torch.float32)):
            return "float32"
        return name

    def spec_to_create(self, directory: Path, name: str, tensor: torch.Tensor) -> dict[str, Any]:
        """TensorStore's spec of a parameter's new array."""
        stored = self.stored_dtype(tensor)
        itemsize = dtypes.BYTES_PER_ELEMENT[dtypes.name_of(tensor) if self.chunks_before_the_cast else stored]
        return {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(directory / _filename(name))},
            "metadata": {
                "shape": list(tensor.shape),
                "dtype": _ZARR_DTYPE.get(stored, stored),
                "chunks": self.chunk_shape(tuple(tensor.shape), itemsize),
                **self.zarr_compressor(),
            },
        }


def spec_to_open(directory: Path, name: str) -> dict[str, Any]:
    """TensorStore's spec of a parameter's array that exists."""
    return {
        "driver": "zarr",
        # The path comes from the name, not from the file's text: that could point anywhere.
        "kvstore": {"driver": "file", "path": str(directory / _filename(name))},
        # The arrays have no fill value, so every chunk is stored: one that is missing is lost, not zero.
        "fill_missing_data_reads": False,
    }


def write_metadata(directory: Path, state: State) -> None:
    """Say which parameters there are, in which order, and of which dtype."""
    entries = {name: {"file": _filename(name), "dtype": dtypes.name_of(tensor)} for name, tensor in state.items()}
    metadata = {
        "format": "one zarr array per parameter",
        "param_count": len(entries),
        "param_names": list(entries),
        "params": entries,
    }
    # The one file that TensorStore does not write, and so does not sync.
    storage.write_whole(directory / _METADATA, json.dumps(metadata).encode(), sync=True)


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
