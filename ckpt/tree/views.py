"""Keeps what torch knows about a tensor besides its values: strides, requires_grad, Parameter or not.

The stored tensor has the same shape and values, so that any reader can use it; the rest is a short JSON note. A tensor
with gaps (`t[::2]`, a column) is restored without the gaps. A tensor with repeated elements (`expand`, `unfold`) is
stored once, and the repetition restored. A lazy conjugate or negative is restored as computed values. Tensors that
overlap no longer share memory, unless they have the same memory, shape and strides.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch

from ckpt.errors import CheckpointError
from ckpt.state import dtypes, ties
from ckpt.tree import dtensors

_Sizes = tuple[int, ...]


def take(tensor: torch.Tensor, path: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the tensor to store, which shares the memory, and the note; a contiguous tensor's note is empty.

    Raises:
        CheckpointError: if it is neither a plain tensor nor a DTensor; the message names its path and a remedy.
    """
    where = f"the state's {path}"
    if dtensors.is_dtensor(tensor):
        return dtensors.take(tensor, where)
    dtypes.require_plain(tensor, where)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError(f"{where} is not a plain tensor ({tensor.layout}, {tensor.device})")
    try:
        dtypes.name_of(tensor)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if ties.span_bytes(tensor) + tensor.storage_offset() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{where} has no memory: it was freed, as FSDP does between uses; gather it, or save the sharded parameters"
        )
    note: dict[str, Any] = {}
    if type(tensor) is torch.nn.Parameter:
        note["parameter"] = True
    if tensor.requires_grad:
        note["requires_grad"] = True
    size, strides = tuple(tensor.shape), tuple(tensor.stride())
    stored = tensor.detach()
    if strides == _contiguous(size):
        return stored, note
    if not tensor.numel() or _is_dense(size, strides):
        return stored, note | {"strides": list(strides)}
    if not _overlaps(size, strides):
        return stored, note
    stored, strides = _without_repeats(stored)
    return stored, note | {"size": list(size), "strides": list(strides)}


def restore_strides(stored: torch.Tensor, size: _Sizes | None, strides: _Sizes) -> torch.Tensor:
    """Return a stored tensor with its original strides, in the same memory, which is reordered; `stored` changes, too.

    Args:
        stored: the tensor as it was loaded.
        size: the original shape, if the stored tensor has each repeated element once; None otherwise.
        strides: the original strides, in elements.

    Raises:
        ValueError: if that is impossible, because the note is damaged.
    """
    shape = tuple(stored.shape)
    if any(type(number) is not int or number < 0 for number in (*(size or ()), *strides)):
        raise ValueError(f"size {size} and strides {strides} are not all non-negative integers")
    if size is not None:
        if len(size) != len(strides) or not stored.is_contiguous() or _span(size, strides) > stored.numel():
            raise ValueError(
                f"a tensor of shape {list(shape)} can't be viewed as {list(size)} with strides {list(strides)}"
            )
        return stored.as_strided(size, strides)
    if len(shape) != len(strides) or not (stored.numel() == 0 or _is_dense(shape, strides)):
        raise ValueError(f"a tensor of shape {list(shape)} can't have strides {list(strides)}")
    have = stored.stride()
    if all(n == 1 or have[axis] == strides[axis] for axis, n in enumerate(shape)) or not stored.numel():
        return stored.as_strided(shape, strides)
    values = stored.clone()  # only this one tensor is in memory twice
    return stored.as_strided_(shape, strides).copy_(values)


def as_leaf(tensor: torch.Tensor, *, parameter: bool, requires_grad: bool) -> torch.Tensor:
    """Return a tensor as a Parameter, or as a leaf that requires a gradient, in the same memory."""
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _contiguous(size: _Sizes) -> _Sizes:
    """Return the strides of a contiguous tensor of that size."""
    sizes = (max(1, n) for n in reversed(size[1:]))
    return tuple(accumulate(sizes, int.__mul__, initial=1))[::-1] if size else ()


def _span(size: _Sizes, strides: _Sizes) -> int:
    """Return the number of elements in memory from the first to the last, both included."""
    return 0 if 0 in size else 1 + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))


def _is_dense(size: _Sizes, strides: _Sizes) -> bool:
    """Return whether a tensor uses every element of its span exactly once."""
    return not _overlaps(size, strides) and _span(size, strides) == math.prod(size)


def _overlaps(size: _Sizes, strides: _Sizes) -> bool:
    """Return whether a tensor may use an element twice; if False, it certainly doesn't."""
    span = 1
    for stride, n in sorted((stride, n) for n, stride in zip(size, strides, strict=True) if n > 1):
        if stride < span:
            return True
        span += (n - 1) * stride
    return False


def _without_repeats(tensor: torch.Tensor) -> tuple[torch.Tensor, _Sizes]:
    """Return a tensor's memory without repeated elements, and the tensor's strides there."""
    strides = tuple(tensor.stride())
    once = tuple(1 if stride == 0 else n for n, stride in zip(tensor.shape, strides, strict=True))
    if _overlaps(once, strides) or _is_dense(once, strides):
        return tensor.as_strided((_span(once, strides),), (1,)), strides
    dense = (0 if stride == 0 else step for stride, step in zip(strides, _contiguous(once), strict=True))
    return tensor.as_strided(once, strides), tuple(dense)
