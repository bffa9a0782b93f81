"""Classes of the user's own in a state: which there are, and how each becomes plain values and back.

A checkpoint names a class; nothing that it names is imported or called unless the program registered it before.
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
    """How one class is saved and rebuilt."""

    name: str
    """As a checkpoint names the class: its module and qualified name."""
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


of_type: dict[type, Converter] = {}
"""The converters by class: what is saved by one is of exactly that class."""

of_name: dict[str, Converter] = {}


def register(
    cls: _Class,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
    *,
    name: str | None = None,
) -> _Class:
    """Let states hold instances of a class of yours; both the program that saves and the one that loads call it.

        ckpt.register(MyConfig)                                    # a dataclass, a named tuple or an enum
        ckpt.register(Range, lambda r: [r.low, r.high], lambda values: Range(*values))

    It returns the class, so that it serves as a decorator, too.

    Args:
        cls: the class; not its subclasses.
        to_plain: makes of an instance what a state may hold: plain values, containers, tensors. May be left out, with
            `from_plain`, for dataclasses (all fields, and no `__init__` on the way back), named tuples and enums.
        from_plain: makes an instance of that again.
        name: as checkpoints name the class; None for its module and qualified name. A class that is saved by a script
            is in `__main__`, and one may move: `ckpt.register(MyConfig, name="__main__.MyConfig")` loads it.

    Raises:
        CheckpointError: if the converters are left out for any other class, or the class is one of Python's own.
    """
    if cls.__module__ == "builtins":
        raise CheckpointError(f"{cls.__qualname__} can't be registered: convert what the state holds of it instead")
    if to_plain is None and from_plain is None:
        to_plain, from_plain = _default(cls)
    if to_plain is None or from_plain is None:
        raise CheckpointError(
            f"{cls.__qualname__} needs converters, since it is no dataclass, named tuple or enum of the usual kind: "
            f"ckpt.register({cls.__qualname__}, to_plain, from_plain)"
        )
    converter = Converter(name or name_of(cls), to_plain, from_plain)
    of_type[cls] = of_name[converter.name] = converter
    return cls


def name_of(cls: type) -> str:
    """The name by which a checkpoint knows a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def call_for(cls: type) -> str:
    """What to type so that instances of a class can be saved."""
    more = "" if _default(cls)[0] else ", to_plain, from_plain"
    return f"ckpt.register({cls.__qualname__}{more})"


def to_plain(value: Any, place: str) -> Any:
    """What a registered instance consists of.

    Raises:
        CheckpointError: if its converter fails; the message names the place.
    """
    converter = of_type[type(value)]
    try:
        return converter.to_plain(value)
    except Exception as error:  # whatever the user's code raises
        raise CheckpointError(
            f"the state's {place!r}: {converter.name} can't be saved: {type(error).__name__}: {error}"
        ) from error


def from_plain(name: Any, plain: Any) -> Any:
    """The instance again.

    Raises:
        CheckpointError: if no class of that name is registered, or its converter fails.
    """
    converter = of_name.get(name) if isinstance(name, str) else None
    if converter is None:
        short = str(name).rpartition(".")[2]
        raise CheckpointError(
            f"the checkpoint holds a {name}, which is registered nowhere in this program: call ckpt.register({short}), "
            f"as the program did that saved it, before loading, with name={name!r} if the class is in another module "
            "now; `names=` loads tensors without it"
        )
    try:
        return converter.from_plain(plain)
    except Exception as error:  # whatever the user's code raises
        raise CheckpointError(f"a {name} can't be rebuilt: {type(error).__name__}: {error}") from error


_Pair = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def _default(cls: type) -> _Pair:
    """The converters of classes that say themselves what they consist of."""
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
    """As it was, whatever a `__new__` of its own would make of it."""
    _refuse_other_fields(cls._fields, plain)
    return tuple.__new__(cls, [plain[name] for name in cls._fields])


def _fields_of(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    _refuse_surplus(value, names)
    return {name: getattr(value, name) for name in names}


def _refuse_surplus(value: Any, names: Collection[str]) -> None:
    surplus = sorted(getattr(value, "__dict__", {}).keys() - set(names))
    if surplus:
        raise ValueError(f"it has attributes that are no fields ({', '.join(surplus)}): register it with converters")


def _refuse_other_fields(names: Collection[str], plain: dict[str, Any]) -> None:
    if set(names) != plain.keys():
        raise ValueError(f"its fields are {sorted(names)} here, and {sorted(plain)} in the checkpoint")


def _with_fields(cls: type, plain: dict[str, Any]) -> Any:
    """As unpickling does it: `__post_init__` has been there already, and frozen classes refuse to be set."""
    _refuse_other_fields([field.name for field in dataclasses.fields(cls)], plain)
    made: Any = object.__new__(cls)
    for name, value in plain.items():
        object.__setattr__(made, name, value)
    return made
