"""The half of `ckpt.tree.nested` that takes a state apart."""

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
"""A walk through a container; it yields the walks through those within, to be done before it goes on."""

_TYPES = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice, the "
    "collections OrderedDict, Counter, defaultdict and deque, Namespace, SimpleNamespace, dates and times, paths, "
    "Decimal, Fraction, UUID, torch.Tensor, Parameter, torch.Size, torch.dtype, torch.device, numpy.ndarray and "
    "numpy's scalars"
)

_PART_LEVELS = 16
"""After so many levels the JSON goes on in a part of its own: Python reads and writes only some hundred levels."""


class Walk:
    """A state taken apart."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.parts: list[Any] = []
        self._depth = 0
        self._keys = 0
        # Every container by id, which keeps it alive, and where its JSON stands; None while it is walked through.
        self._seen: dict[int, tuple[Any, list[Any] | None, int]] = {}

    def put(self, value: Any, place: str, into: list[Any]) -> Steps | None:
        """Append the value's JSON; or return the walk that will, see `ckpt.tree.nested`."""
        kind = type(value)
        if kind in converters.of_type or kind in containers.TYPES:
            return self._container(value, place, into)
        into.append(self._leaf(value, place))
        return None

    def _leaf(self, value: Any, place: str) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray) and not self._keys:
            return self._tensor(value, place) if isinstance(value, torch.Tensor) else self._array(value, place)
        try:
            return plain.encode(value)
        except TypeError:
            cls = type(value)
            raise CheckpointError(
                f"the state's {_shown(place)} is of type {cls.__module__}.{cls.__qualname__}, which can't be saved"
                f"{' as a key' if self._keys else ''}: convert it to one of {_TYPES}; or let it be converted, by "
                f"{converters.call_for(cls)}"
            ) from None
        except ValueError as error:
            raise CheckpointError(
                f"the state's {_shown(place)}, a {type(value).__qualname__}, can't be saved: {error}"
            ) from None

    def _tensor(self, tensor: torch.Tensor, place: str) -> Any:
        stored, note = views.take(tensor, _shown(place))
        name = self._add(stored, place)
        return {"tensor": {"name": name, **note} if note else name}

    def _array(self, array: np.ndarray[Any, Any], place: str) -> Any:
        if type(array) is not np.ndarray:
            cls = type(array)
            raise CheckpointError(
                f"the state's {_shown(place)} is a {cls.__module__}.{cls.__qualname__}, which would come back as a "
                "plain array: convert it by numpy.asarray, and save a mask or field names beside it"
            )
        try:  # torch wants memory in order, which it may write to
            tensor = dtypes.to_torch(array if array.flags.carray else np.array(array, order="C"))
            dtypes.name_of(tensor)
        except (TypeError, ValueError, CheckpointError):
            raise CheckpointError(
                f"the state's {_shown(place)} is an array of {array.dtype}, which can't be saved"
            ) from None
        name = self._add(tensor, place)
        in_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        return {"array": {"name": name, "order": "F"} if in_columns else name}

    def _add(self, tensor: torch.Tensor, place: str) -> str:
        name, number = place, 1
        while name in self.tensors:  # {"a.b": x, "a": {"b": y}}
            number += 1
            name = f"{place}~{number}"
        self.tensors[name] = tensor
        return name

    def _container(self, value: Any, place: str, into: list[Any]) -> Steps:
        if id(value) in self._seen:
            _, holder, index = self._seen[id(value)]
            if holder is None:
                raise CheckpointError(f"the state's {_shown(place)} contains itself")
            into.append(self._part(holder, index))
            return
        self._depth += 1
        if self._depth > containers.DEEPEST:
            raise CheckpointError(
                f"the state's {_shown(place)} lies more than {containers.DEEPEST:,} containers deep, or contains "
                "itself: save what is needed of it in a flatter form"
            )
        shared = not _is_constant(value)
        if shared:
            self._seen[id(value)] = value, None, 0
        node = yield from self._contents(value, place)
        into.append(node)
        if shared:
            self._seen[id(value)] = value, into, len(into) - 1
        if self._depth % _PART_LEVELS == 0:
            self._part(into, len(into) - 1)
        self._depth -= 1

    def _part(self, holder: list[Any], index: int) -> Any:
        """Move some JSON into a part of its own; what stands at its place then stands wherever else it belongs."""
        node = holder[index]
        if not (isinstance(node, dict) and "part" in node):
            self.parts.append(node)
            node = holder[index] = {"part": len(self.parts)}
        return node

    def _contents(self, value: Any, place: str) -> Generator[Steps, None, Any]:
        kind = type(value)
        if kind in converters.of_type:
            inner = yield from self._inner(converters.to_plain(value, place), place)
            return {"registered": [converters.of_type[kind].name, inner]}
        if kind is deque:
            return {"deque": [value.maxlen, (yield from self._items(value, place))]}
        if kind is defaultdict:
            factory = containers.factory_name(value)
            if factory is None:
                raise CheckpointError(
                    f"the state's {_shown(place)} is a defaultdict of {value.default_factory!r}, which can't be saved: "
                    f"take dict(…) of it, or one of {', '.join(containers.FACTORIES)} as its factory"
                )
            return {"defaultdict": [factory, {"dict": (yield from self._pairs(value, place))}]}
        if kind in containers.OF_ITEMS:
            items = yield from self._items(value, place)
            return items if kind is list else {containers.OF_ITEMS[kind]: items}
        if kind in containers.OF_NAMESPACES:
            return {containers.OF_NAMESPACES[kind]: (yield from self._pairs(vars(value), place))}
        node = {containers.OF_MAPPINGS[kind]: (yield from self._pairs(value, place))}
        attributes = getattr(value, "__dict__", None)  # such as a state_dict's `_metadata`
        return {"attributes": [node, (yield from self._inner(attributes, place))]} if attributes else node

    def _items(self, values: Iterable[Any], place: str) -> Generator[Steps, None, list[Any]]:
        items: list[Any] = []
        for number, value in enumerate(values):
            inner = self.put(value, _below(place, number), items)
            if inner:
                yield inner
        return items

    def _pairs(self, mapping: Mapping[Any, Any], place: str) -> Generator[Steps, None, list[Any]]:
        pairs: list[Any] = []
        for key, value in mapping.items():
            pair: list[Any] = []
            where = _below(place, key)
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

    def _inner(self, value: Any, place: str) -> Generator[Steps, None, Any]:
        into: list[Any] = []
        inner = self.put(value, place, into)
        if inner:
            yield inner
        return into[0]


def _is_constant(value: Any) -> bool:
    """Whether nobody can tell two copies of it apart, so that each place may have its own."""
    if isinstance(value, Enum):
        return True
    return type(value) in {tuple, torch.Size, frozenset} and not any(
        type(each) in containers.TYPES or type(each) in converters.of_type for each in value
    )


def _below(place: str, key: Any) -> str:
    try:
        text = str(key)
    except ValueError:  # a number of thousands of digits
        text = type(key).__name__
    return f"{place}.{text}" if place else text


def _shown(place: str) -> str:
    """A place in a message."""
    return repr(place if len(place) <= 200 else f"{place[:100]}…{place[-80:]}") if place else "'top'"
