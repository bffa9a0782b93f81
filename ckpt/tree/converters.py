"""The registry of the user's own classes in a state, with functions that convert them to plain values and back.

A checkpoint contains names of classes. None is imported or called unless the program has registered it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from ckpt.errors import CheckpointError

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True, slots=True)
class Converter:
    """Converts instances of one class."""

    name: str
    """The class's name in checkpoints, by default its module and qualified name."""
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


of_type: dict[type, Converter] = {}
"""The converters by class; a converter is not used for subclasses."""

of_name: dict[str, Converter] = {}


def register(
    cls: _Class,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
    *,
    name: str | None = None,
) -> _Class:
    """Allow instances of your own class in states. Call it in the program that saves and in the one that loads.

        ckpt.register(MyConfig)                                    # a dataclass, a named tuple or an enum
        ckpt.register(Range, lambda r: [r.low, r.high], lambda values: Range(*values))

    It returns the class, so that it can be used as a decorator.

    Args:
        cls: the class; its subclasses need registrations of their own.
        to_plain: converts an instance to what a state may hold: plain values, containers, tensors. Optional, like
            `from_plain`, for dataclasses (all fields; rebuilt without calling `__init__`), named tuples and enums.
        from_plain: converts that back to an instance.
        name: the class's name in checkpoints; None for its module and qualified name. A class that a script saved has
            the module `__main__`, and a class may move: `ckpt.register(MyConfig, name="__main__.MyConfig")` loads it.

    Raises:
        CheckpointError: if a converter is missing for any other class, or the class is one of Python's own.
    """
    if cls.__module__ == "builtins":
        raise CheckpointError(
            f"{cls.__qualname__} is a built-in type and can't be registered: convert the values before saving them"
        )
    if to_plain is None and from_plain is None:
        to_plain, from_plain = _default(cls)
    if to_plain is None or from_plain is None:
        raise CheckpointError(
            f"{cls.__qualname__} needs converters, since it is not a plain dataclass, named tuple or enum: "
            f"ckpt.register({cls.__qualname__}, to_plain, from_plain)"
        )
    converter = Converter(name or name_of(cls), to_plain, from_plain)
    of_type[cls] = of_name[converter.name] = converter
    return cls


def name_of(cls: type) -> str:
    """Return a class's default name in checkpoints."""
    return f"{cls.__module__}.{cls.__qualname__}"


def call_for(cls: type) -> str:
    """Return the call that allows instances of a class in states, for messages."""
    arguments = "" if _default(cls)[0] else ", to_plain, from_plain"
    return f"ckpt.register({cls.__qualname__}{arguments})"


def to_plain(value: Any, path: str) -> Any:
    """Convert an instance of a registered class to plain values.

    Raises:
        CheckpointError: if its converter fails; the message names the path in the state.
    """
    converter = of_type[type(value)]
    try:
        return converter.to_plain(value)
    except Exception as error:  # whatever the user's code raises
        raise CheckpointError(
            f"the state's {path}: {converter.name} can't be saved: {type(error).__name__}: {error}"
        ) from error


def from_plain(name: Any, plain: Any) -> Any:
    """Rebuild an instance of a registered class from plain values.

    Raises:
        CheckpointError: if no class of that name is registered, or its converter fails.
    """
    converter = of_name.get(name) if isinstance(name, str) else None
    if converter is None:
        short = str(name).rpartition(".")[2]
        raise CheckpointError(
            f"the checkpoint contains an instance of {name}, which this program hasn't registered: call "
            f"ckpt.register({short}) before loading, as the program that saved it did, with name={name!r} if the "
            "class has moved to another module; or load only tensors, with `names=`"
        )
    try:
        return converter.from_plain(plain)
    except Exception as error:  # whatever the user's code raises
        raise CheckpointError(f"a {name} can't be rebuilt: {type(error).__name__}: {error}") from error


_Pair = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def _default(cls: type) -> _Pair:
    """Return the converters of a dataclass, named tuple or enum; None twice for any other class."""
    if issubclass(cls, enum.Flag):
        return (lambda value: value.value), cls
    if issubclass(cls, enum.Enum):
        return (lambda value: value.name), cls.__getitem__
    if issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        return _items_of, lambda plain: _with_items(cls, plain)
    if dataclasses.is_dataclass(cls) and cls.__new__ is object.__new__:
        return _fields_of, lambda plain: _with_fields(cls, plain)
    return None, None


def _items_of(value: Any) -> dict[str, Any]:
    _refuse_surplus(value, ())
    return dict(zip(value._fields, value, strict=True))


def _with_items(cls: Any, plain: dict[str, Any]) -> Any:
    """Rebuild a named tuple as it was, without calling a `__new__` that might change it."""
    _refuse_other_fields(cls._fields, plain)
    return tuple.__new__(cls, [plain[name] for name in cls._fields])


def _fields_of(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    _refuse_surplus(value, names)
    return {name: getattr(value, name) for name in names}


def _refuse_surplus(value: Any, names: Collection[str]) -> None:
    surplus = sorted(getattr(value, "__dict__", {}).keys() - set(names))
    if surplus:
        raise ValueError(
            f"it has attributes that aren't fields ({', '.join(surplus)}): register its class with converters"
        )


def _refuse_other_fields(names: Collection[str], plain: dict[str, Any]) -> None:
    if set(names) != plain.keys():
        raise ValueError(f"its fields are {sorted(names)} here, and {sorted(plain)} in the checkpoint")


def _with_fields(cls: type, plain: dict[str, Any]) -> Any:
    """Rebuild a dataclass as pickle does: without `__post_init__`, which has run before, and even if it is frozen."""
    _refuse_other_fields([field.name for field in dataclasses.fields(cls)], plain)
    instance: Any = object.__new__(cls)
    for name, value in plain.items():
        object.__setattr__(instance, name, value)
    return instance
