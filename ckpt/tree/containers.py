"""The types of containers in a state, and the words for them in the JSON.

    {"tuple": [item, …]}   {"dict": [[key, value], …]}   {"deque": [maxlen, [item, …]]}

A list is a JSON list. `part` and `parts` hold containers that occur several times, or lie deep: `ckpt.tree.nested`.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from ckpt.tree import converters

DEEPEST = 1000
"""The most containers that may be nested in each other."""

FACTORIES: dict[str, Callable[[], Any] | None] = {
    "None": None,
    **{kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)},
    **{kind.__name__: kind for kind in (OrderedDict, Counter, deque)},
}
"""The default factories that a defaultdict may have."""


def _attributed(children: list[Any]) -> Any:
    container, attributes = children
    vars(container).update(attributes)
    return container


def _namespace(cls: type, pairs: list[Any]) -> Any:
    namespace = cls()
    vars(namespace).update(pairs)
    return namespace


ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "Size": torch.Size,
    "set": set,
    "frozenset": frozenset,
    "attributes": _attributed,
}
"""Makes a container from its items. The items of `attributes` are a container and a dict of its attributes."""

PAIRS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
    "Namespace": lambda pairs: _namespace(Namespace, pairs),
    "SimpleNamespace": lambda pairs: _namespace(SimpleNamespace, pairs),
}
"""Makes a container from pairs of key and value."""

HEADED: dict[str, Callable[[Any, Any], Any]] = {
    "defaultdict": lambda factory, inner: defaultdict(FACTORIES[factory], inner),
    "deque": lambda longest, inner: deque(inner, longest),
    "registered": converters.from_plain,
}
"""Makes a container from a plain value and the value of a second node."""

OF_ITEMS: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "Size", set: "set", frozenset: "frozenset"}
OF_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "OrderedDict", Counter: "Counter"}
OF_NAMESPACES: dict[type, str] = {Namespace: "Namespace", SimpleNamespace: "SimpleNamespace"}
TYPES = frozenset({*OF_ITEMS, *OF_MAPPINGS, *OF_NAMESPACES, defaultdict, deque})


def factory_name(value: defaultdict[Any, Any]) -> str | None:
    """Return the name of a defaultdict's factory in `FACTORIES`; None if it isn't one of them."""
    return next((name for name, factory in FACTORIES.items() if factory is value.default_factory), None)
