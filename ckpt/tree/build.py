"""The half of `ckpt.tree.nested` that puts a state together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ckpt.state import dtypes
from ckpt.tree import plain, views
from ckpt.tree.containers import HEADED, ITEMS, PAIRS
from ckpt.tree.walk import Steps

_CONTAINERS = {*ITEMS, *PAIRS, *HEADED, "part"}


class Build:
    """A state put together."""

    def __init__(self, rest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self.parts: list[Any] = rest["parts"] if isinstance(rest, dict) and rest.keys() == {"parts"} else [rest]
        self._tensors = tensors
        self._done: dict[int, list[Any]] = {}  # parts by number, empty while they are put together
        self._made: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}  # and what they were made of

    def put(self, node: Any, into: list[Any]) -> Steps | None:
        """Append what a node stands for; or return the walk that will, see `ckpt.tree.nested`."""
        if isinstance(node, list):
            return self._items(list, node, into)
        if not isinstance(node, dict):
            into.append(node)
            return None
        ((kind, content),) = node.items()
        if kind in _CONTAINERS:
            return self._container(kind, content, into)
        into.append(self._leaf(kind, content))
        return None

    def _container(self, kind: str, content: Any, into: list[Any]) -> Steps:
        if kind in ITEMS:
            return self._items(ITEMS[kind], content, into)
        if kind in PAIRS:
            return self._pairs(PAIRS[kind], content, into)
        return self._part(content, into) if kind == "part" else self._headed(HEADED[kind], content, into)

    def tensor(self, content: Any) -> torch.Tensor:
        """The tensor of a node, as the state had it; the same one for nodes that say the same of tied names."""
        if isinstance(content, str):
            return self._tensors[content]
        found = self._tensors[content["name"]]
        if "strides" in content:
            size = tuple(content["size"]) if "size" in content else None
            strides = tuple(content["strides"])
            found = self._once((id(found), size, strides), found, lambda stored: views.see(stored, size, strides))
        parameter, wants = bool(content.get("parameter")), bool(content.get("requires_grad"))
        return self._once(
            (id(found), parameter, wants),
            found,
            lambda seen: views.keep(seen, parameter=parameter, requires_grad=wants),
        )

    def _once(
        self, key: tuple[Any, ...], stored: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if key not in self._made:
            self._made[key] = stored, make(stored)
        return self._made[key][1]

    def _leaf(self, kind: str, content: Any) -> Any:
        if kind == "tensor":
            return self.tensor(content)
        if kind not in {"array", "scalar"}:
            return plain.decode(kind, content)
        note = note_of(content)
        array = dtypes.to_numpy(self._tensors[note["name"]])
        if note.get("order") == "F":
            return np.asfortranarray(array)
        return array[()] if kind == "scalar" else array

    def _items(self, make: Callable[[list[Any]], Any], content: Any, into: list[Any]) -> Steps:
        items: list[Any] = []
        for node in content:
            inner = self.put(node, items)
            if inner:
                yield inner
        into.append(items if make is list else make(items))

    def _pairs(self, make: Callable[[list[Any]], Any], content: Any, into: list[Any]) -> Steps:
        pairs: list[Any] = []
        for key, value in content:
            pair: list[Any] = []
            for node in (key, value):
                inner = self.put(node, pair)
                if inner:
                    yield inner
            pairs.append(pair)
        into.append(make(pairs))

    def _headed(self, make: Callable[[Any, Any], Any], content: Any, into: list[Any]) -> Steps:
        head, node = content
        rest: list[Any] = []
        inner = self.put(node, rest)
        if inner:
            yield inner
        into.append(make(head, rest[0]))

    def _part(self, number: int, into: list[Any]) -> Steps:
        if number not in self._done:
            self._done[number] = []
            inner = self.put(self.parts[number], self._done[number])
            if inner:
                yield inner
        into.append(self._done[number][0])


def note_of(content: Any) -> dict[str, Any]:
    """What a node says of a tensor: most have nothing but a name."""
    return content if isinstance(content, dict) else {"name": content}
