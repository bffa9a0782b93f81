"""Converts a nested state to its JSON and tensors, for `ckpt.tree.nested`."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch

from ckpt.errors import CheckpointError
from ckpt.state import dtypes
from ckpt.tree import containers, converters, plain, views

Steps = Generator[Any, None, None]
"""A walk through a container. It yields the walks through the containers within, to be run before it continues."""

_TYPES = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice, the "
    "collections OrderedDict, Counter, defaultdict and deque, Namespace, SimpleNamespace, dates and times, paths, "
    "Decimal, Fraction, UUID, torch.Tensor, Parameter, torch.Size, torch.dtype, torch.device, numpy.ndarray and "
    "numpy's scalars"
)

_PART_LEVELS = 16
"""Every so many levels, the JSON continues in a part: Python's json handles only some hundred levels."""


class Walk:
    """Converts one state."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.leaves: dict[str, torch.Tensor | np.ndarray[Any, Any]] = {}
        """The tensors and arrays themselves."""
        self.copied: list[str] = []
        """The names of arrays whose tensors are copies."""
        self.parts: list[Any] = []
        self._depth = 0
        self._keys = 0
        # The containers by id, kept alive here, with the position of their JSON; None during the walk through one.
        self._seen: dict[int, tuple[Any, list[Any] | None, int]] = {}

    def put(self, value: Any, path: str, into: list[Any]) -> Steps | None:
        """Append a value's JSON, or return the walk that will: see `ckpt.tree.nested`."""
        kind = type(value)
        if kind in converters.of_type or kind in containers.TYPES:
            return self._container(value, path, into)
        into.append(self._leaf(value, path))
        return None

    def _leaf(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray) and not self._keys:
            return self._tensor(value, path) if isinstance(value, torch.Tensor) else self._array(value, path)
        try:
            return plain.encode(value)
        except TypeError:
            cls = type(value)
            raise CheckpointError(
                f"the state's {_shown(path)} is of type {cls.__module__}.{cls.__qualname__}, which can't be saved"
                f"{' as a key' if self._keys else ''}: convert it to one of {_TYPES}; or register a converter with "
                f"{converters.call_for(cls)}"
            ) from None
        except ValueError as error:
            raise CheckpointError(
                f"the state's {_shown(path)}, a {type(value).__qualname__}, can't be saved: {error}"
            ) from None

    def _tensor(self, tensor: torch.Tensor, path: str) -> Any:
        stored, note = views.take(tensor, _shown(path))
        name = self._add(stored, tensor, path)
        return {"tensor": {"name": name, **note} if note else name}

    def _array(self, array: np.ndarray[Any, Any], path: str) -> Any:
        if type(array) is not np.ndarray:
            cls = type(array)
            raise CheckpointError(
                f"the state's {_shown(path)} is a {cls.__module__}.{cls.__qualname__}, which would be restored as "
                "a plain array: convert it with numpy.asarray, and save a mask or field names separately"
            )
        try:  # torch needs memory that is C-contiguous and writable
            tensor = dtypes.to_torch(array if array.flags.carray else np.array(array, order="C"))
            dtypes.name_of(tensor)
        except (TypeError, ValueError, CheckpointError):
            raise CheckpointError(
                f"the state's {_shown(path)} is an array of {array.dtype}, which can't be saved"
            ) from None
        name = self._add(tensor, array, path)
        if not array.flags.carray:
            self.copied.append(name)
        in_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        return {"array": {"name": name, "order": "F"} if in_columns else name}

    def _add(self, tensor: torch.Tensor, leaf: torch.Tensor | np.ndarray[Any, Any], path: str) -> str:
        name, number = path, 1
        while name in self.tensors:  # {"a.b": x, "a": {"b": y}}
            number += 1
            name = f"{path}~{number}"
        self.tensors[name], self.leaves[name] = tensor, leaf
        return name

    def _container(self, value: Any, path: str, into: list[Any]) -> Steps:
        if id(value) in self._seen:
            _, holder, index = self._seen[id(value)]
            if holder is None:
                raise CheckpointError(f"the state's {_shown(path)} contains itself")
            into.append(self._part(holder, index))
            return
        self._depth += 1
        if self._depth > containers.DEEPEST:
            raise CheckpointError(
                f"the state's {_shown(path)} is nested more than {containers.DEEPEST:,} containers deep, or contains "
                "itself: flatten it before saving it"
            )
        shared = not _is_constant(value)
        if shared:
            self._seen[id(value)] = value, None, 0
        node = yield from self._contents(value, path)
        into.append(node)
        if shared:
            self._seen[id(value)] = value, into, len(into) - 1
        if self._depth % _PART_LEVELS == 0:
            self._part(into, len(into) - 1)
        self._depth -= 1

    def _part(self, holder: list[Any], index: int) -> Any:
        """Move a container's JSON to a part, and return the reference that replaces it wherever it occurs."""
        node = holder[index]
        if not (isinstance(node, dict) and "part" in node):
            self.parts.append(node)
            node = holder[index] = {"part": len(self.parts)}
        return node

    def _contents(self, value: Any, path: str) -> Generator[Steps, None, Any]:
        kind = type(value)
        if kind in converters.of_type:
            inner = yield from self._inner(converters.to_plain(value, _shown(path)), path)
            return {"registered": [converters.of_type[kind].name, inner]}
        if kind is deque:
            return {"deque": [value.maxlen, (yield from self._items(value, path))]}
        if kind is defaultdict:
            factory = containers.factory_name(value)
            if factory is None:
                raise CheckpointError(
                    f"the state's {_shown(path)} is a defaultdict of {value.default_factory!r}, which can't be saved: "
                    f"convert it with dict(…), or use one of {', '.join(containers.FACTORIES)} as its factory"
                )
            return {"defaultdict": [factory, {"dict": (yield from self._pairs(value, path))}]}
        if kind in containers.OF_ITEMS:
            items = yield from self._items(value, path)
            return items if kind is list else {containers.OF_ITEMS[kind]: items}
        if kind in containers.OF_NAMESPACES:
            return {containers.OF_NAMESPACES[kind]: (yield from self._pairs(vars(value), path))}
        node = {containers.OF_MAPPINGS[kind]: (yield from self._pairs(value, path))}
        attributes = getattr(value, "__dict__", None)  # such as a state_dict's `_metadata`
        return {"attributes": [node, (yield from self._inner(attributes, path))]} if attributes else node

    def _items(self, values: Iterable[Any], path: str) -> Generator[Steps, None, list[Any]]:
        items: list[Any] = []
        for number, value in enumerate(values):
            inner = self.put(value, _below(path, number), items)
            if inner:
                yield inner
        return items

    def _pairs(self, mapping: Mapping[Any, Any], path: str) -> Generator[Steps, None, list[Any]]:
        pairs: list[Any] = []
        for key, value in mapping.items():
            pair: list[Any] = []
            where = _below(path, key)
            self._keys += 1
            inner = self.put(key, where, pair)
            if inner:
                yield inner
            self._keys -= 1
            inner = self.put(value, where, pair)
            if inner:
                yield inner
            pairs.append(pair)
        return pairs

    def _inner(self, value: Any, path: str) -> Generator[Steps, None, Any]:
        into: list[Any] = []
        inner = self.put(value, path, into)
        if inner:
            yield inner
        return into[0]


def _is_constant(value: Any) -> bool:
    """Return whether copies of a value can't be told apart, so that it needn't be restored as one object."""
    if isinstance(value, Enum):
        return True
    return type(value) in {tuple, torch.Size, frozenset} and not any(
        type(item) in containers.TYPES or type(item) in converters.of_type for item in value
    )


def _below(path: str, key: Any) -> str:
    try:
        text = str(key)
    except ValueError:  # an int with thousands of digits
        text = type(key).__name__
    return f"{path}.{text}" if path else text


def _shown(path: str) -> str:
    """Return a path as messages show it."""
    return repr(path if len(path) <= 200 else f"{path[:100]}…{path[-80:]}") if path else "'top'"
