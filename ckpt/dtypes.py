"""The dtypes of a state dict: their sizes, and their way to numpy and back without a copy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


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

    name = name_of(tensor)
    dtype = np.dtype(getattr(ml_dtypes, name) if name in _BITS_OF else name)
    return to_bytes(tensor).view(dtype).reshape(tuple(tensor.shape))


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
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not Tensor.numpy(), after which the storage can't be resized any more, in a training loop's own tensors neither.
    memory: Any = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr()) if values.nbytes else bytearray()
    if values.nbytes:
        memory.tensor = values  # so that it lives as long as the array does
    return np.frombuffer(memory, np.uint8)


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
