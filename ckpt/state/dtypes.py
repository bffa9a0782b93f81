"""The dtypes of a state dict: their sizes, and their way to numpy and back without a copy."""

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


def is_bits(name: str) -> bool:
    """Whether numpy knows the dtype of that name through ml_dtypes only."""
    return name in _BITS_OF


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Numpy's dtype of a name, ml_dtypes' ones among them."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name) if is_bits(name) else name)


def require_plain(tensor: torch.Tensor, where: str = "a tensor of the state") -> None:
    """Refuse what only looks like a tensor: a subclass's values are not, or not all, in memory of its own.

    Raises:
        CheckpointError: unless it is exactly a torch.Tensor or a Parameter; the message names `where` it is, and the
            way out.
    """
    import torch

    kind = type(tensor)
    if kind in {torch.Tensor, torch.nn.Parameter}:
        return
    way_out = "convert it to a plain torch.Tensor"
    if any(cls.__name__ == "DTensor" for cls in kind.__mro__):  # named, since importing it takes seconds
        way_out = (
            "it holds this rank's part of a tensor: let every rank call `.full_tensor()`, and one of them save that; "
            "or let every rank save its part, `.to_local()`, under a name of its own"
        )
    elif torch.nn.parameter.is_lazy(tensor):
        way_out = "it has no shape yet: run the module once before saving it"
    raise CheckpointError(f"{where} is no ordinary tensor but a {kind.__module__}.{kind.__qualname__}: {way_out}")


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's values as a numpy array of the same dtype and shape, C-contiguous.

    Shares memory with a contiguous tensor on the CPU, copies any other.
    """
    return to_bytes(tensor).view(numpy_dtype(name_of(tensor))).reshape(tuple(tensor.shape))


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
    require_plain(tensor)
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not Tensor.numpy(), after which the storage can't be resized any more, in a training loop's own tensors neither.
    memory: Any = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr()) if values.nbytes else bytearray()
    if values.nbytes:
        memory.tensor = values  # so that it lives as long as the array does
    return np.frombuffer(memory, np.uint8)
