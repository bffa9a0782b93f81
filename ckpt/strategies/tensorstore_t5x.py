"""The document's T5X TensorStore: 64 MiB chunks, gzip, a context 128 wide, one parameter at a time.

What T5X really does (all arrays at once, chunks that divide the array) is another strategy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ckpt.formats.chunks import RANKS
from ckpt.strategies._zarr_per_parameter import ZarrPerParameter
from ckpt.strategy import Facts

_TARGET_CHUNK_BYTES = 64 * 2**20
_CONCURRENCY = 128


@dataclass(frozen=True)
class TensorstoreT5x(ZarrPerParameter):
    """TensorStore with the settings that the document takes from T5X."""

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v2, one array per parameter",
            chunks="64 MiB at most, by halving the largest dimension",
            compression="gzip level 1 (no level given, so TensorStore's own)",
            concurrency=f"file_io_concurrency {_CONCURRENCY}, within one parameter",
            dtype_on_disk="float32 for 16-bit floats, else as in the state",
            order_of_writes="one parameter at a time",
            synced="files",
            atomic="each file",
            checksum="verified",
            partial_load="by tensor",
            other_readers="TensorStore, zarr-python",
            best_for="Production, scale",
            ranks=RANKS,
            resharding="any number of ranks",
        )

    def chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:
        """Halve the largest dimension until a chunk has at most 64 MiB."""
        target_elements = max(1, _TARGET_CHUNK_BYTES // bytes_per_element)
        chunk = [max(1, size) for size in shape]
        while math.prod(chunk) > target_elements and max(chunk) > 1:
            largest = chunk.index(max(chunk))
            chunk[largest] //= 2
        return chunk

    def zarr_compressor(self) -> dict[str, Any]:
        """Gzip, at the level that TensorStore takes when none is given: 1."""
        return {"compressor": {"id": "gzip"}}

    def context(self) -> dict[str, Any]:
        """128 file operations at once, on save and on load."""
        return {"file_io_concurrency": {"limit": _CONCURRENCY}}
