"""The basic TensorStore of the original comparison: zarr arrays in chunks of at most 64 along every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ckpt.formats.chunks import RANKS
from ckpt.strategies._zarr_per_parameter import ZarrPerParameter
from ckpt.strategy import Description

_LARGEST_SIDE = 64


@dataclass(frozen=True)
class TensorstoreBasic(ZarrPerParameter):
    """TensorStore as a first try uses it.

    Attributes:
        compressor: `default` leaves it out of the metadata, as the original comparison does in the belief that
            nothing is compressed then; TensorStore takes blosc. `none` stores raw bytes.
    """

    compressor: Literal["default", "none"] = "default"

    name: ClassVar[str] = "tensorstore_basic"

    def describe(self) -> Description:
        """Describe the arrays."""
        return Description(
            files="1 per chunk, 1 per parameter, 1",
            format="zarr v2, one array per parameter",
            chunks="min(64, size) along each dimension",
            compression="blosc lz4 level 5 (left out, so TensorStore's own)"
            if self.compressor == "default"
            else "none",
            concurrency="TensorStore's default context",
            dtype_on_disk="float32 for 16-bit floats, else as in the state",
            order_of_writes="one parameter at a time",
            other_readers="TensorStore, zarr-python",
            best_for="Cross-framework",
            ranks=RANKS,
        )

    def chunk_shape(self, shape: tuple[int, ...], bytes_per_element: int) -> list[int]:  # noqa: ARG002  # the original ignores the size in bytes
        """Return `min(64, size)` along every dimension, but at least 1, as zarr demands."""
        return [max(1, min(_LARGEST_SIDE, size)) for size in shape]

    def zarr_compressor(self) -> dict[str, Any]:
        """Return no entry, or an explicit null."""
        return {} if self.compressor == "default" else {"compressor": None}

    def context(self) -> dict[str, Any]:
        """Return an empty context: TensorStore's default."""
        return {}
