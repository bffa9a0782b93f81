"""Which values an option can have, by its type."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def choices(kind: Any) -> set[Any]:
    """The values of an option's type that can be listed; of a type that is one of several, those of each."""
    if kind is bool:
        return {False, True}
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    is_one_of_several = get_origin(kind) in {Union, UnionType}
    return {value for one in get_args(kind) for value in choices(one)} if is_one_of_several else set()
