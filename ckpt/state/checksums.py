"""What tells one tensor's bytes from another's: XXH3 with 64 bits, which one thread computes at memory's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt.state import dtypes

if TYPE_CHECKING:
    import torch


def of(tensor: torch.Tensor) -> str:
    """The checksum of a tensor's bytes, in the order of its elements, in hexadecimal."""
    return of_bytes(dtypes.to_bytes(tensor))


def of_bytes(data: Any) -> str:
    """The checksum of a buffer; the library releases the interpreter's lock."""
    import xxhash

    return str(xxhash.xxh3_64_hexdigest(data))
