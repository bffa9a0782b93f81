"""The dtypes of a state dict: their sizes, and their way to numpy and back without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping

    import torch

    from ckpt.layout import TensorLayout

BYTES_PER_ELEMENT = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes per element of every dtype that a checkpoint may hold, by torch's name."""

# numpy knows these only through ml_dtypes; torch hands them over as bits.
_BITS_OF = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def name_of(tensor: torch.Tensor) -> str:
    """The dtype's name as in `BYTES_PER_ELEMENT`.

    Raises:
        CheckpointError: if no strategy can store that dtype.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in BYTES_PER_ELEMENT:
        raise CheckpointError(
            f"dtype {name} can't be stored; expected one of {', '.join(BYTES_PER_ELEMENT)}. "
            "Convert the tensor before saving it."
        )
    return name


def torch_dtype(name: str) -> torch.dtype:
    """Torch's dtype of a name in `BYTES_PER_ELEMENT`, as checkpoints keep it.

    Raises:
        CheckpointError: for any other name.
    """
    import torch

    if name not in BYTES_PER_ELEMENT:
        raise CheckpointError(f"the checkpoint names a dtype {name!r}; known are {', '.join(BYTES_PER_ELEMENT)}")
    found: torch.dtype = getattr(torch, name)
    return found


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's values as a numpy array of the same dtype and shape, C-contiguous.

    Shares memory with a contiguous tensor on the CPU, copies any other.
    """
    import ml_dtypes
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    name = name_of(tensor)
    if name in _BITS_OF:
        bits = tensor.view(getattr(torch, _BITS_OF[name])).numpy()
        return bits.view(np.dtype(getattr(ml_dtypes, name)))
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """The array as a tensor of the same dtype and shape; shares memory where the array is contiguous."""
    import torch

    array = np.asarray(array, order="C")  # unlike ascontiguousarray, this keeps a 0-d array 0-d
    name = array.dtype.name
    if name in _BITS_OF:
        return torch.from_numpy(array.view(_BITS_OF[name])).view(getattr(torch, name))
    return torch.from_numpy(array)


def to_bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's bytes, 1-D; shares memory with a contiguous tensor on the CPU, copies any other."""
    import torch

    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = values.as_strided((values.numel(),), (1,))  # a lone element is contiguous whatever its stride
    found: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy()
    return found


def view(memory: mmap.mmap, offset: int, layout: TensorLayout) -> torch.Tensor:
    """The tensor of that layout whose bytes lie at that place of some memory, without a copy where that is possible.

    Each has a storage of its own, so that who changes, or frees, one leaves the others alone.
    """
    import torch

    dtype = torch_dtype(layout.dtype)
    if not layout.elements:
        return torch.empty(layout.shape, dtype=dtype)
    if offset % BYTES_PER_ELEMENT[layout.dtype]:  # other programs align to eight bytes at best
        copied = torch.frombuffer(memory, dtype=torch.uint8, count=layout.size_bytes, offset=offset).clone()
        return copied.view(dtype).reshape(layout.shape)
    return torch.frombuffer(memory, dtype=dtype, count=layout.elements, offset=offset).reshape(layout.shape)


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tied tensors have in common, and no others while both are alive: their memory and how it is seen."""
    memory = (tensor.device, tensor.data_ptr()) if tensor.numel() else id(tensor)
    return memory, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()


def tied(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
    """The names whose tensor is an earlier one's memory again: that one's name, and their own place, from 0."""
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, tuple[str, int]] = {}
    for place, (name, tensor) in enumerate(state.items()):
        owner = first.setdefault(identity(tensor), name)
        if owner != name:
            found[name] = (owner, place)
    return found
