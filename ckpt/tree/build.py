"""Rebuilds a nested state from its JSON and tensors, for `ckpt.tree.nested`."""

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
    """Rebuilds one state."""

    def __init__(self, rest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self.parts: list[Any] = rest["parts"] if isinstance(rest, dict) and rest.keys() == {"parts"} else [rest]
        self._tensors = tensors
        self._built: dict[int, list[Any]] = {}  # parts by number; empty while a part is being built
        self._views: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}  # with the tensors they were made of

    def put(self, node: Any, into: list[Any]) -> Steps | None:
        """Append a node's value, or return the walk that will: see `ckpt.tree.nested`."""
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
        """Return the tensor of a node as it was in the state; nodes that describe the same tensor get the same one."""
        if isinstance(content, str):
            return self._tensors[content]
        tensor = self._tensors[content["name"]]
        if "strides" in content:
            size = tuple(content["size"]) if "size" in content else None
            strides = tuple(content["strides"])
            tensor = self._once(
                (id(tensor), size, strides), tensor, lambda stored: views.restore_strides(stored, size, strides)
            )
        parameter, requires_grad = bool(content.get("parameter")), bool(content.get("requires_grad"))
        return self._once(
            (id(tensor), parameter, requires_grad),
            tensor,
            lambda view: views.as_leaf(view, parameter=parameter, requires_grad=requires_grad),
        )

    def _once(
        self, key: tuple[Any, ...], stored: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        if key not in self._views:
            self._views[key] = stored, make(stored)
        return self._views[key][1]

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
        if number not in self._built:
            self._built[number] = []
            inner = self.put(self.parts[number], self._built[number])
            if inner:
                yield inner
        into.append(self._built[number][0])


class BuildWith(Build):
    """Rebuilds one state with tensors and arrays that are given; None where one isn't."""

    def __init__(self, rest: Any, leaves: Mapping[str, Any]) -> None:
        super().__init__(rest, {})
        self._leaves = leaves

    def _leaf(self, kind: str, content: Any) -> Any:
        if kind in {"tensor", "array", "scalar"}:
            return self._leaves.get(note_of(content)["name"])
        return super()._leaf(kind, content)


def note_of(content: Any) -> dict[str, Any]:
    """Return a tensor node's content as a dict; most nodes hold only a name."""
    return content if isinstance(content, dict) else {"name": content}
