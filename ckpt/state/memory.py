"""Memory of loaded tensors: each one's own, as torch allocates it — aligned, resizable, freed with its tensor.

Tensors that are views of a larger piece would keep all of it, could not be resized as FSDP does it, and may start where
vectorised arithmetic rounds differently.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckpt.state import dtypes

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import TensorLayout

ALIGNMENT = 64
"""Of the first element, in bytes: a cache line, and the widest vector; torch's own."""

_HUGE_PAGE_BYTES = 2 * 2**20
_POPULATE_BYTES = 4 * 2**20


def empty(layout: TensorLayout) -> torch.Tensor:
    """A tensor of that layout, to be filled; in huge pages where it is large and the kernel has them."""
    import torch

    tensor = torch.empty(layout.shape, dtype=dtypes.torch_dtype(layout.dtype))
    address, size_bytes = _pages(tensor)
    if size_bytes >= 2 * _HUGE_PAGE_BYTES:
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), mmap.MADV_HUGEPAGE)
    return tensor


def own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if its memory is its own and torch's; else a copy."""
    import torch

    storage = tensor.untyped_storage()
    is_own = storage.resizable() and tensor.storage_offset() == 0 and storage.nbytes() == tensor.nbytes
    if is_own and tensor.data_ptr() % ALIGNMENT == 0 and tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def populate(tensors: Iterable[torch.Tensor]) -> None:
    """Let the kernel clear the pages of new tensors, so that who reads into them need not wait for that.

    Meant for a thread beside those that read. Before Linux 5.14 it does nothing.
    """
    for tensor in tensors:
        address, size_bytes = _pages(tensor)
        for offset in range(0, size_bytes, _POPULATE_BYTES):
            length = min(_POPULATE_BYTES, size_bytes - offset)
            if _libc.madvise(ctypes.c_void_p(address + offset), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
                return


def _pages(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the whole pages of a tensor's memory begin, and how many bytes they have."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return start, max(0, end - start)


_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23
