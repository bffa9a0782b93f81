"""The containers that a state may consist of, by the word that stands for each in the JSON.

    {"tuple": [item, …]}   {"dict": [[key, value], …]}   {"deque": [its length at most, [item, …]]}

A list is a JSON list. `part` and `parts` hold what stands at several places, or lies deep: see `ckpt.tree.nested`.
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
"""How many containers may lie one within the other."""

FACTORIES: dict[str, Callable[[], Any] | None] = {
    "None": None,
    **{each.__name__: each for each in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)},
    **{each.__name__: each for each in (OrderedDict, Counter, deque)},
}
"""What a defaultdict may make missing values with."""


def _attributed(children: list[Any]) -> Any:
    container, attributes = children
    vars(container).update(attributes)
    return container


def _namespace(cls: type, pairs: list[Any]) -> Any:
    made = cls()
    vars(made).update(pairs)
    return made


ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "Size": torch.Size,
    "set": set,
    "frozenset": frozenset,
    "attributes": _attributed,
}
"""Of its items. `attributes` are a container, and a dict of the attributes that somebody gave it."""

PAIRS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
    "Namespace": lambda pairs: _namespace(Namespace, pairs),
    "SimpleNamespace": lambda pairs: _namespace(SimpleNamespace, pairs),
}
"""Of its pairs of key and value."""

HEADED: dict[str, Callable[[Any, Any], Any]] = {
    "defaultdict": lambda factory, inner: defaultdict(FACTORIES[factory], inner),
    "deque": lambda longest, inner: deque(inner, longest),
    "registered": converters.from_plain,
}
"""Of a plain value, and of a node that holds the rest."""

OF_ITEMS: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "Size", set: "set", frozenset: "frozenset"}
OF_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "OrderedDict", Counter: "Counter"}
OF_NAMESPACES: dict[type, str] = {Namespace: "Namespace", SimpleNamespace: "SimpleNamespace"}
TYPES = frozenset({*OF_ITEMS, *OF_MAPPINGS, *OF_NAMESPACES, defaultdict, deque})


def factory_name(found: defaultdict[Any, Any]) -> str | None:
    """The factory's name in `FACTORIES`; None if it isn't one of them."""
    return next((name for name, factory in FACTORIES.items() if factory is found.default_factory), None)
