"""The memory of loaded tensors: one allocation of torch for each, aligned, resizable, and freed with its tensor.

Views of a larger allocation would keep all of it alive, could not be resized, which FSDP does, and might start at an
address where vectorised arithmetic rounds differently.
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
"""The alignment of the first element in bytes, as torch has it: a cache line, and the widest vector."""

_HUGE_PAGE_BYTES = 2 * 2**20
_PREFAULT_BYTES = 4 * 2**20


def empty(layout: TensorLayout) -> torch.Tensor:
    """Allocate a tensor of that layout, in huge pages if it is large and the kernel provides them."""
    import torch

    tensor = torch.empty(layout.shape, dtype=dtypes.torch_dtype(layout.dtype))
    address, size_bytes = _pages(tensor)
    if size_bytes >= 2 * _HUGE_PAGE_BYTES:
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), mmap.MADV_HUGEPAGE)
    return tensor


def own(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor if it has an allocation of torch to itself; a copy otherwise."""
    import torch

    storage = tensor.untyped_storage()
    is_own = storage.resizable() and tensor.storage_offset() == 0 and storage.nbytes() == tensor.nbytes
    if is_own and tensor.data_ptr() % ALIGNMENT == 0 and tensor.is_contiguous():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def prefault(tensors: Iterable[torch.Tensor]) -> None:
    """Prefault the pages of new tensors, so that reading into them doesn't wait for the kernel to clear pages.

    Call it in a thread of its own while others read. Does nothing before Linux 5.14.
    """
    for tensor in tensors:
        address, size_bytes = _pages(tensor)
        for offset in range(0, size_bytes, _PREFAULT_BYTES):
            length = min(_PREFAULT_BYTES, size_bytes - offset)
            if _libc.madvise(ctypes.c_void_p(address + offset), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
                return


def _pages(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address of the first whole page of a tensor's memory, and the bytes of all whole pages."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return start, max(0, end - start)


_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23
