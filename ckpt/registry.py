"""Finds strategies by name: the modules of `ckpt.strategies`, and the entry points of other installed packages.

A package adds a strategy by an entry point in the group `ckpt.strategies`, whose name is the class's `name`:

    [project.entry-points."ckpt.strategies"]
    my_strategy = "my_package.my_module:MyStrategy"
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import Field, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ckpt import strategies
from ckpt.errors import ContradictionError, UnknownStrategyError
from ckpt.strategy import Strategy

GROUP = "ckpt.strategies"
"""The entry points' group."""

FORMER_NAMES = {"safetensors_direct": "safetensors_tuned"}
"""Strategies that had other names: studies, plans and checkpoints may have these."""

SELFTEST = "_selftest"
"""The strategy of known cost that `python -m jobs selftest` runs; `names` leaves it out."""


def names() -> list[str]:
    """List all strategies: this package's and those of other installed packages."""
    return sorted({*_own_names(), *_entry_points()})


def strategy_class(name: str) -> type[Strategy]:
    """Import the class of a strategy, by its name or a former one.

    Raises:
        UnknownStrategyError: if there is no strategy of that name, with those there are; if two packages have one;
            or if another package's can't be imported.
    """
    name = FORMER_NAMES.get(name, name)
    points = _entry_points().get(name, ())
    own = name in {*_own_names(), SELFTEST}
    if not points and not own:
        raise UnknownStrategyError(f"there is no strategy {name!r}; there are {', '.join(names())}")
    if len(points) + own > 1:
        packages = [*(["ckpt-study"] if own else []), *map(_package, points)]
        raise UnknownStrategyError(
            f"strategy {name!r} is in several installed packages: {', '.join(packages)}. Uninstall all but one"
        )
    return _own_class(name) if own else _loaded(points[0])


def create(name: str, options: dict[str, Any] | None = None) -> Strategy:
    """Create the strategy of that name, with these options.

    Raises:
        UnknownStrategyError: if there is no such strategy, option, or value of an option.
        ContradictionError: if the options make no sense together.
    """
    cls = strategy_class(name)
    try:
        created: Strategy = TypeAdapter(cls).validate_python(options or {})
    except ValidationError as error:
        known = ", ".join(f"{field.name} ({type_name(field)})" for field in fields(cls)) or "none"
        messages: dict[str, list[str]] = {}  # an option of several types has one message for each of them
        for problem in error.errors():
            option = "".join(map(str, problem["loc"][:1]))  # nothing if they are no options at all
            messages.setdefault(f"{option} = {problem['input']!r}", []).append(problem["msg"].lower())
        problems = "; ".join(f"{value}: {', or '.join(texts)}" for value, texts in messages.items())
        raise UnknownStrategyError(f"strategy {name}: {problems}. Its options: {known}") from None
    if created.contradiction:
        raise ContradictionError(f"strategy {created.label}: {created.contradiction}")
    return created


def create_all() -> tuple[list[Strategy], list[str]]:
    """Create every strategy with its default options; also returns the errors of those that can't be created."""
    created, problems = [], []
    for name in names():
        try:
            created.append(create(name))
        except UnknownStrategyError as error:
            problems.append(str(error))
    return created, problems


def type_name(option: Field[Any]) -> str:
    """Return the type of an option as its class declares it."""
    return option.type if isinstance(option.type, str) else getattr(option.type, "__name__", str(option.type))


@cache
def _own_names() -> frozenset[str]:
    modules = pkgutil.iter_modules(strategies.__path__)
    return frozenset(module.name for module in modules if not module.name.startswith("_"))


def _own_class(name: str) -> type[Strategy]:
    """Return the class with that name among those that the module defines."""
    module = importlib.import_module(f"{strategies.__name__}.{name}")
    return next(cls for cls in vars(module).values() if isinstance(cls, type) and getattr(cls, "name", "") == name)


@cache
def _entry_points() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of other packages, by name; a package that is on the path twice counts once."""
    by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for point in set(entry_points(group=GROUP)):
        by_name[point.name] = (*by_name.get(point.name, ()), point)
    return by_name


def _loaded(point: EntryPoint) -> type[Strategy]:
    try:
        cls: type[Strategy] = point.load()
    except Exception as error:  # an import may fail in any way
        raise UnknownStrategyError(
            f"strategy {point.name!r} of {_package(point)} can't be imported: {type(error).__name__}: {error}. Mend or "
            "uninstall that package"
        ) from error
    is_strategy = isinstance(cls, type) and issubclass(cls, Strategy) and is_dataclass(cls)
    if not is_strategy or getattr(cls, "name", None) != point.name:
        raise UnknownStrategyError(
            f"strategy {point.name!r} of {_package(point)} can't be used: {point.value} is no dataclass that derives "
            f"from ckpt.strategy.Strategy and has name = {point.name!r}"
        )
    return cls


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
