"""How a tensor sees its memory — strides, requires_grad, Parameter or not — beside the values that are stored.

What is stored has the tensor's shape and values, so that everybody can read it; what torch knows besides is a few
words of JSON. A tensor with gaps (`t[::2]`, a column) comes back without them; one that sees an element several times
(`expand`, `unfold`) is stored once, and seen so again. A lazy conjugate or negative comes back computed. Tensors that
overlap share no memory any more, unless they see the same memory in the same way.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch

from ckpt.errors import CheckpointError
from ckpt.state import dtypes, ties

_Sizes = tuple[int, ...]


def take(tensor: torch.Tensor, place: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """What to store of a tensor, and what to note of it: nothing for a contiguous one without gradient.

    Nothing is copied.

    Raises:
        CheckpointError: if it is no ordinary tensor; the message names its place and the way out.
    """
    where = f"the state's {place}"
    dtypes.require_plain(tensor, where)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError(f"{where} is not a plain tensor ({tensor.layout}, {tensor.device})")
    try:
        dtypes.name_of(tensor)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if ties.span_bytes(tensor) + tensor.storage_offset() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{where} has no memory: it was freed, as FSDP does between uses; gather it, or save what is sharded"
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


def see(stored: torch.Tensor, size: _Sizes | None, strides: _Sizes) -> torch.Tensor:
    """The stored values, seen as they were, in the same memory: it is put in order, and `stored` sees that.

    Raises:
        ValueError: if they can't be: the note is damaged.
    """
    shape = tuple(stored.shape)
    if any(type(number) is not int or number < 0 for number in (*(size or ()), *strides)):
        raise ValueError(f"strides {strides} of {size}")
    if size is not None:
        if len(size) != len(strides) or not stored.is_contiguous() or _span(size, strides) > stored.numel():
            raise ValueError(f"{list(shape)} can't be seen as {list(size)} with strides {list(strides)}")
        return stored.as_strided(size, strides)
    if len(shape) != len(strides) or not (stored.numel() == 0 or _is_dense(shape, strides)):
        raise ValueError(f"{list(shape)} can't have strides {list(strides)}")
    have = stored.stride()
    if all(n == 1 or have[axis] == strides[axis] for axis, n in enumerate(shape)) or not stored.numel():
        return stored.as_strided(shape, strides)
    values = stored.clone()  # the one tensor that is in memory twice
    return stored.as_strided_(shape, strides).copy_(values)


def keep(tensor: torch.Tensor, *, parameter: bool, requires_grad: bool) -> torch.Tensor:
    """The same memory as a Parameter, or as a leaf that wants a gradient."""
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _contiguous(size: _Sizes) -> _Sizes:
    """The strides that torch gives a new tensor."""
    sizes = (max(1, n) for n in reversed(size[1:]))
    return tuple(accumulate(sizes, int.__mul__, initial=1))[::-1] if size else ()


def _span(size: _Sizes, strides: _Sizes) -> int:
    """How many elements lie from the first to the last, all included."""
    return 0 if 0 in size else 1 + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))


def _is_dense(size: _Sizes, strides: _Sizes) -> bool:
    """Whether every element of the memory that it spans is one of its own, and seen once."""
    return not _overlaps(size, strides) and _span(size, strides) == math.prod(size)


def _overlaps(size: _Sizes, strides: _Sizes) -> bool:
    """Whether it may see an element twice; certain if not."""
    span = 1
    for stride, n in sorted((stride, n) for n, stride in zip(size, strides, strict=True) if n > 1):
        if stride < span:
            return True
        span += (n - 1) * stride
    return False


def _without_repeats(tensor: torch.Tensor) -> tuple[torch.Tensor, _Sizes]:
    """The memory behind a tensor that sees elements several times, and its strides there."""
    strides = tuple(tensor.stride())
    once = tuple(1 if stride == 0 else n for n, stride in zip(tensor.shape, strides, strict=True))
    if _overlaps(once, strides) or _is_dense(once, strides):
        return tensor.as_strided((_span(once, strides),), (1,)), strides
    dense = (0 if stride == 0 else own for stride, own in zip(strides, _contiguous(once), strict=True))
    return tensor.as_strided(once, strides), tuple(dense)
