"""The dtypes that a checkpoint may hold: their sizes, and conversion to numpy and back without a copy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt.errors import CheckpointError

if TYPE_CHECKING:
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

AS_UNSIGNED = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""The dtypes that numpy knows only through ml_dtypes, and the unsigned integers that have their bits."""


def name_of(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype, as in `BYTES_PER_ELEMENT`.

    Raises:
        CheckpointError: if the dtype isn't among them: no strategy can store it.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in BYTES_PER_ELEMENT:
        raise CheckpointError(
            f"dtype {name} can't be stored; expected one of {', '.join(BYTES_PER_ELEMENT)}. "
            "Convert the tensor before saving it."
        )
    return name


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a name in `BYTES_PER_ELEMENT`.

    Raises:
        CheckpointError: for any other name.
    """
    import torch

    if name not in BYTES_PER_ELEMENT:
        raise CheckpointError(f"the checkpoint has a dtype {name!r}; expected one of {', '.join(BYTES_PER_ELEMENT)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_bits(name: str) -> bool:
    """Return whether numpy knows the dtype of that name only through ml_dtypes."""
    return name in AS_UNSIGNED


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of a name, including those of ml_dtypes."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name) if is_bits(name) else name)


def require_plain(tensor: torch.Tensor, where: str = "a tensor of the state") -> None:
    """Reject subclasses of torch.Tensor: their values are not, or not all, in the tensor's own memory.

    Args:
        tensor: to check.
        where: the tensor's description for the message.

    Raises:
        CheckpointError: unless the tensor's type is exactly torch.Tensor or Parameter; the message gives a remedy.
    """
    import torch

    kind = type(tensor)
    if kind in {torch.Tensor, torch.nn.Parameter}:
        return
    remedy = "convert it to a plain torch.Tensor"
    if any(cls.__name__ == "DTensor" for cls in kind.__mro__):  # by name, since importing it takes seconds
        remedy = (
            "it holds this rank's shard of a tensor: call `.full_tensor()` on every rank and save the result on one, "
            "or save each rank's shard, `.to_local()`, under a different name"
        )
    elif torch.nn.parameter.is_lazy(tensor):
        remedy = "it has no shape yet: run the module once before saving it"
    raise CheckpointError(f"{where} is not a plain tensor but a {kind.__module__}.{kind.__qualname__}: {remedy}")


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's values as a C-contiguous numpy array of the same dtype and shape.

    The array shares memory with a contiguous tensor on the CPU; any other tensor is copied.
    """
    return to_bytes(tensor).view(numpy_dtype(name_of(tensor))).reshape(tuple(tensor.shape))


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return an array as a tensor of the same dtype and shape; it shares memory with a contiguous array."""
    import torch

    array = np.asarray(array, order="C")  # unlike ascontiguousarray, this keeps a 0-d array 0-d
    name = array.dtype.name
    if name in AS_UNSIGNED:
        return torch.from_numpy(array.view(AS_UNSIGNED[name])).view(getattr(torch, name))
    return torch.from_numpy(array)


def to_bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's bytes as a 1-D array; it shares memory with a contiguous tensor on the CPU."""
    require_plain(tensor)
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not Tensor.numpy(): it makes the storage unresizable for good, and a training loop may need to resize it.
    memory: Any = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr()) if values.nbytes else bytearray()
    if values.nbytes:
        memory.tensor = values  # so that it lives as long as the array does
    return np.frombuffer(memory, np.uint8)
