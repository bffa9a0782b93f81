"""T5X's TensorStore as the original comparison has it: 64 MiB chunks, gzip, one parameter at a time.

What T5X really does (all arrays at once, chunks that divide the array) is `tensorstore_t5x_real`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ckpt.formats.chunks import RANKS
from ckpt.strategies._zarr_per_parameter import ZarrPerParameter
from ckpt.strategy import Capabilities, Checksum, Description

_TARGET_CHUNK_BYTES = 64 * 2**20
_CONCURRENCY = 128


@dataclass(frozen=True)
class TensorstoreT5x(ZarrPerParameter):
    """TensorStore with the settings that the original comparison takes from T5X."""

    name: ClassVar[str] = "tensorstore_t5x"

    @property
    def capabilities(self) -> Capabilities:
        """Gzip has a checksum, which is compared when a chunk is read."""
        return replace(super().capabilities, checksum=Checksum.VERIFIED)

    def describe(self) -> Description:
        """Describe the arrays."""
        return Description(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v2, one array per parameter",
            chunks="64 MiB at most, by halving the largest dimension",
            compression="gzip level 1 (no level given, so TensorStore's own)",
            concurrency=f"file_io_concurrency {_CONCURRENCY}, within one parameter",
            dtype_on_disk="float32 for 16-bit floats, else as in the state",
            order_of_writes="one parameter at a time",
            other_readers="TensorStore, zarr-python",
            best_for="Production, scale",
            ranks=RANKS,
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
        """Compress with gzip, at TensorStore's default level: 1."""
        return {"compressor": {"id": "gzip"}}

    def context(self) -> dict[str, Any]:
        """Allow 128 file operations at once, on save and on load."""
        return {"file_io_concurrency": {"limit": _CONCURRENCY}}
