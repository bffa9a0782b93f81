"""Converts plain values to JSON and back without loss: numbers, texts, dates, paths, numpy's scalars.

None, bool, int, str and finite floats are JSON's own; any other value is `{kind: content}`.
"""

from __future__ import annotations

import base64
import math
import struct
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any

import numpy as np
import torch

from ckpt.errors import CheckpointError
from ckpt.state import dtypes

_LONGEST_INT_BITS = 8192  # by default, Python converts at most 4,300 decimal digits


def encode(value: Any) -> Any:
    """Convert a value to JSON.

    Raises:
        TypeError: if its type is not supported.
        ValueError: if this value would not be restored exactly.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int and value.bit_length() <= _LONGEST_INT_BITS:
        return value
    if kind is str and (value.isascii() or not _has_surrogates(value)):
        return value
    if kind is float and math.isfinite(value):
        return value
    if kind in _KINDS:
        name, to_json = _KINDS[kind]
        return {name: to_json(value)}
    if isinstance(value, np.generic):
        return {"numpy": _of_scalar(value)}
    raise TypeError(f"{kind.__name__} is not a plain value")


def decode(kind: str, content: Any) -> Any:
    """Convert `{kind: content}` back to the value.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, NotImplementedError: if `encode` didn't write it.
    """
    return _FROM_JSON[kind](content)


def _base64(content: bytes | bytearray) -> str:
    return base64.b64encode(content).decode()


def _of_text(text: str) -> str:
    return _base64(text.encode("utf-32-le", "surrogatepass"))


def _has_surrogates(text: str) -> bool:
    """Return whether a text has surrogates: JSON would join two of them to one character."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _float_text(value: float) -> str:
    """Convert an infinity or NaN, which JSON lacks, to text; a NaN's sign and payload are kept as bits."""
    bits = struct.pack(">d", value)
    return str(value) if bits in _NAMED_BITS else f"bits {bits.hex()}"


_NAMED_BITS = {struct.pack(">d", float(text)) for text in ("inf", "-inf", "nan")}


def _float(content: str | float) -> float:
    if isinstance(content, str) and content.startswith("bits "):
        (value,) = struct.unpack(">d", bytes.fromhex(content[5:]))
        return float(value)
    return float(content)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else _float_text(value)


def _of_zone(zone: Any) -> list[Any] | None:
    if zone is None:
        return None
    if type(zone) is not timezone:
        raise ValueError(f"its time zone is a {type(zone).__qualname__}: convert it to UTC, or to datetime.timezone")
    offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # what it pickles
    return [_of_delta(offset), *name]


def _zone(content: list[Any] | None) -> timezone | None:
    return None if content is None else timezone(_delta(content[0]), *content[1:])


def _of_delta(delta: timedelta) -> list[int]:
    return [delta.days, delta.seconds, delta.microseconds]


def _delta(content: list[int]) -> timedelta:
    days, seconds, microseconds = content
    return timedelta(days, seconds, microseconds)


def _of_time(value: datetime | time) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, _of_zone(value.tzinfo), value.fold]


def _time(content: list[Any]) -> time:
    hour, minute, second, microsecond, zone, fold = content
    return time(hour, minute, second, microsecond, _zone(zone), fold=fold)


def _datetime(content: list[Any]) -> datetime:
    year, month, day, *of_day = content
    return datetime.combine(date(year, month, day), _time(of_day))


def _bounds(value: range | slice) -> list[Any]:
    bounds = [value.start, value.stop, value.step]
    if not all(bound is None or type(bound) is int for bound in bounds):
        raise ValueError("its bounds are not integers")
    return bounds


def _of_scalar(value: np.generic) -> list[str]:
    dtype = value.dtype
    content = [dtype.name if dtypes.is_bits(dtype.name) else dtype.str, _base64(value.tobytes())]
    try:
        restored = _scalar(content)
    except (TypeError, ValueError):
        restored = None
    if type(restored) is not type(value) or (restored.dtype, restored.tobytes()) != (dtype, value.tobytes()):
        raise ValueError(f"numpy scalars of {dtype} are not supported")
    return content


def _scalar(content: list[str]) -> Any:
    name, text = content
    dtype, raw = dtypes.numpy_dtype(name), base64.b64decode(text)
    if dtype.hasobject or len(raw) != dtype.itemsize:
        raise ValueError(f"a scalar of {dtype} can't have {len(raw)} bytes")
    return np.frombuffer(raw, dtype)[0]


def _torch_dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the checkpoint has a dtype {text!r}, which torch {torch.__version__} doesn't have")
    return dtype


# kind, type, to JSON, from JSON
_TABLE: tuple[tuple[str, type, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    ("int", int, hex, lambda text: int(text, 16)),
    ("str", str, _of_text, lambda text: base64.b64decode(text).decode("utf-32-le", "surrogatepass")),
    ("float", float, _float_text, _float),
    ("complex", complex, lambda z: [_number(z.real), _number(z.imag)], lambda parts: complex(*map(_float, parts))),
    ("bytes", bytes, _base64, base64.b64decode),
    ("bytearray", bytearray, _base64, lambda text: bytearray(base64.b64decode(text))),
    ("range", range, _bounds, lambda bounds: range(*bounds)),
    ("slice", slice, _bounds, lambda bounds: slice(*bounds)),
    ("dtype", torch.dtype, str, _torch_dtype),
    ("device", torch.device, str, torch.device),
    ("numpy", np.generic, _of_scalar, _scalar),
    ("date", date, lambda day: [day.year, day.month, day.day], lambda numbers: date(*numbers)),
    ("time", time, _of_time, _time),
    ("datetime", datetime, lambda at: [at.year, at.month, at.day, *_of_time(at)], _datetime),
    ("timedelta", timedelta, _of_delta, _delta),
    ("timezone", timezone, _of_zone, _zone),
    ("Decimal", Decimal, str, Decimal),
    ("Fraction", Fraction, str, lambda text: Fraction(*map(int, text.split("/")))),
    ("UUID", uuid.UUID, lambda u: [u.hex, u.is_safe.name], lambda c: uuid.UUID(c[0], is_safe=uuid.SafeUUID[c[1]])),
    *((kind.__name__, kind, str, kind) for kind in (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)),
)
_KINDS = {kind: (name, to_json) for name, kind, to_json, _ in _TABLE}
_FROM_JSON = {name: from_json for name, _, _, from_json in _TABLE}
