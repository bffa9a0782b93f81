"""Validation of what other processes send, before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_LONGEST_TEXT = 10**6
_MOST_ROWS = 10**6
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (float, int)}


def row(kind: type[T]) -> Callable[[Any], T]:
    """Reads one row of a log: a dict with the columns of that dataclass, every value of its type."""

    def read(value: Any) -> T:
        columns = {column.name: column for column in fields(kind)}  # type: ignore[arg-type]  # a dataclass
        if not isinstance(value, dict):
            raise TypeError(f"a {kind.__name__} is no {type(value).__name__}")
        unknown = sorted(set(map(str, value)) - set(columns))
        missing = [name for name, column in columns.items() if name not in value and column.default is MISSING]
        if unknown or missing:
            raise ValueError(f"a {kind.__name__} with {unknown[:3]} and without {missing[:3]}")
        for name, content in value.items():
            _check(f"{kind.__name__}.{name}", str(columns[name].type), content)
        return kind(**value)

    return read


def rows(kind: type[T]) -> Callable[[Any], list[T]]:
    """Reads a list of such rows."""
    one = row(kind)

    def read(value: Any) -> list[T]:
        if not isinstance(value, list) or len(value) > _MOST_ROWS:
            raise TypeError(f"no list of {kind.__name__}s")
        return [one(item) for item in value]

    return read


def pair(first: Callable[[Any], T], second: Callable[[Any], U]) -> Callable[[Any], tuple[T, U]]:
    """Reads two things, one of either kind."""

    def read(value: Any) -> tuple[T, U]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise TypeError("no pair")
        return first(value[0]), second(value[1])

    return read


def counts(names: Collection[str]) -> Callable[[Any], dict[str, int] | None]:
    """Reads whole numbers by these names, or nothing."""

    def read(value: Any) -> dict[str, int] | None:
        if value is None:
            return None
        if not isinstance(value, dict) or set(value) != set(names):
            raise TypeError(f"no counts of {', '.join(names)}")
        return {name: count(item) for name, item in value.items()}

    return read


def text(value: Any) -> str:
    """Reads a text."""
    _check("a text", "str", value)
    return str(value)


def number(value: Any) -> float:
    """Reads a number."""
    _check("a number", "float", value)
    return float(value)


def count(value: Any) -> int:
    """Reads a whole number, from 0."""
    _check("a count", "int", value)
    if value < 0:
        raise ValueError(f"a count is not {value}")
    return int(value)


def _check(name: str, kind: str, value: Any) -> None:
    wrong_bool = isinstance(value, bool) and kind != "bool"
    if wrong_bool or not isinstance(value, _TYPES[kind]):
        raise TypeError(f"{name} is to be {kind}, not {type(value).__name__}")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name} has {len(value)} characters")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is beyond 64 bits")
