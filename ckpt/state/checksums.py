"""Checksums of tensors: XXH3 with 64 bits, which one thread computes at the speed of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt.state import dtypes

if TYPE_CHECKING:
    import torch


def of(tensor: torch.Tensor) -> str:
    """Compute the checksum of a tensor's bytes, in the order of its elements; return it in hexadecimal."""
    return of_bytes(dtypes.to_bytes(tensor))


def of_bytes(data: Any) -> str:
    """Compute the checksum of a buffer; the library releases the interpreter's lock meanwhile."""
    import xxhash

    return str(xxhash.xxh3_64_hexdigest(data))
