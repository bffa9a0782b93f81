"""A training loop's state — nested containers, tensors, plain values — as named tensors and a JSON text, and back.

    flatten({"model": {"w": tensor}, "step": 7})
        -> {"model.w": tensor}, {"dict": [["model", {"dict": [["w", {"tensor": "model.w"}]]}], ["step", 7]]}

Nothing is pickled: what comes back is built from JSON, and can only be one of the types below.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ckpt import dtypes
from ckpt.errors import CheckpointError

State = dict[str, torch.Tensor]

_TYPES = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, torch.Tensor, torch.Size, "
    "torch.dtype, torch.device, numpy arrays and scalars"
)


def flatten(value: Any) -> tuple[State, dict[str, str], Any]:
    """Take a nested state apart.

    Returns:
        The tensors by name (their keys joined by dots), the names that share an earlier one's memory with that name,
        and the rest, ready for `json.dumps`. A flat dict of tensors keeps its names.

    Raises:
        CheckpointError: if a value is of another type, or contains itself; the message names its place.
    """
    names = _Names()
    try:
        rest = _walk(value, "", names)
    except RecursionError:
        raise CheckpointError("the state contains itself, or is nested too deeply to be saved") from None
    tied = {name: owner for name, (owner, _) in dtypes.tied(names.tensors).items()}
    return {name: tensor for name, tensor in names.tensors.items() if name not in tied}, tied, rest


def restore(rest: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put a state together again.

    Raises:
        CheckpointError: if the text is none of `flatten`'s.
    """
    try:
        return _restore(rest, tensors)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error


def plain_values(rest: Any) -> int:
    """How many values the text holds that are no containers and no tensors."""
    if isinstance(rest, list):
        return sum(map(plain_values, rest))
    if not isinstance(rest, dict):
        return 1
    ((kind, content),) = rest.items()
    if kind in {"dict", "OrderedDict"}:
        return sum(plain_values(value) for _, value in content)
    if kind in {"tuple", "Size"}:
        return sum(map(plain_values, content))
    return int(kind not in {"tensor", "array", "scalar"})


class _Names:
    """The tensors that were found so far, each by a name of its own."""

    def __init__(self) -> None:
        self.tensors: State = {}

    def add(self, tensor: torch.Tensor, place: str) -> str:
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(f"the state's {place!r} is no ordinary tensor ({tensor.layout}, {tensor.device})")
        try:
            dtypes.name_of(tensor)
        except CheckpointError as error:
            raise CheckpointError(f"the state's {place!r}: {error}") from None
        name, number = place, 1
        while name in self.tensors:  # {"a.b": x, "a": {"b": y}}
            number += 1
            name = f"{place}~{number}"
        self.tensors[name] = tensor.detach()
        return name


def _walk(found: Any, place: str, names: _Names) -> Any:
    kind = type(found)
    if found is None or kind in {bool, int, str}:
        return found
    if isinstance(found, torch.Tensor):
        return {"tensor": names.add(found, place)}
    if isinstance(found, np.ndarray | np.generic):
        return {"array" if isinstance(found, np.ndarray) else "scalar": names.add(_of_array(found, place), place)}
    if kind in {dict, OrderedDict}:
        pairs = [[_key(key, place), _walk(each, _below(place, key), names)] for key, each in found.items()]
        return {kind.__name__: pairs}
    if kind in {list, tuple, torch.Size}:
        inside = [_walk(each, _below(place, number), names) for number, each in enumerate(found)]
        return inside if kind is list else {kind.__name__: inside}
    return _plain(found, place)


def _below(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _key(key: Any, place: str) -> Any:
    """A key of a dict, as JSON: a plain value, or a tuple of them."""
    if type(key) is tuple:
        return {"tuple": [_key(each, place) for each in key]}
    return key if key is None or type(key) in {bool, int, str} else _plain(key, _below(place, key))


def _plain(value: Any, place: str) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is complex:
        return {"complex": [_number(value.real), _number(value.imag)]}
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if kind in {torch.dtype, torch.device}:
        return {kind.__name__: str(value)}
    raise CheckpointError(
        f"the state's {place or 'top'!r} is of type {kind.__module__}.{kind.__qualname__}, which can't be saved: "
        f"convert it to one of {_TYPES}"
    )


def _number(value: float) -> float | str:
    """JSON has no infinities and no NaN."""
    return value if math.isfinite(value) else str(value)


def _of_array(array: np.ndarray[Any, Any] | np.generic, place: str) -> torch.Tensor:
    try:
        return dtypes.to_torch(np.array(array))  # a copy: torch wants memory that it may write to
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state's {place!r} is an array of {array.dtype}, which can't be saved") from error


def _restore(rest: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(rest, list):
        return [_restore(each, tensors) for each in rest]
    if not isinstance(rest, dict):
        return rest
    ((kind, content),) = rest.items()
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](_restore(each, tensors) for each in content)
    if kind in {"tensor", "array", "scalar"}:
        tensor = tensors[content]
        return tensor if kind == "tensor" else dtypes.to_numpy(tensor)[() if kind == "scalar" else ...]
    return _PLAIN[kind](content)


def _torch_dtype(text: str) -> torch.dtype:
    return dtypes.torch_dtype(text.removeprefix("torch."))


_CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "tuple": tuple,
    "Size": torch.Size,
}
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": lambda parts: complex(*map(float, parts)),
    "bytes": base64.b64decode,
    "dtype": _torch_dtype,
    "device": torch.device,
}
