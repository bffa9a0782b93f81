"""The commands that a study runs around its trials, and the axes that they vary: pure, no I/O."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

Value = int | float | str
DIRECTORY, NODE = "directory", "node"
"""Placeholders that every command may have: the job's scratch directory, and the node's number from 0."""


def words(command: str, values: Mapping[str, object]) -> list[str]:
    """The words of a command: split as a shell does, then each `{name}` replaced, so that no value is ever split.

    Braces around anything else stay as they are.

    Raises:
        ValueError: if a quotation doesn't end.
    """
    return [filled(word, values) for word in shlex.split(command)]


def filled(text: str, values: Mapping[str, object]) -> str:
    """A text with every `{name}` that has a value replaced by it."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), text)


def check(commands: Sequence[str], axes: Mapping[str, Value | tuple[Value, ...]]) -> None:
    """Make sure that commands can be split into words, and that every axis makes a difference.

    Raises:
        ValueError: naming the command or the axis.
    """
    for command in commands:
        try:
            empty = not shlex.split(command)
        except ValueError as error:
            raise ValueError(f"the command {command!r} can't be split into words: {error}") from None
        if empty:
            raise ValueError("a command is empty")
    for name, value in axes.items():
        if name in {DIRECTORY, NODE}:
            raise ValueError(f"an axis can't be called {name!r}: {{{name}}} stands for something else")
        if not any(f"{{{name}}}" in command for command in commands):
            raise ValueError(f"the axis {name!r} changes nothing: no command in prepare or between has {{{name}}}")
        if value == ():
            raise ValueError(f"the axis {name!r} is empty")


def variants(name: str, axes: Mapping[str, Value | tuple[Value, ...]]) -> Iterator[tuple[str, dict[str, Value]]]:
    """Every combination of a target's axes, the first changing slowest, with the name of its target.

    Only lists are axes, and part of the name: `lustre+stripe_count=4`.
    """
    lists = {key: value for key, value in axes.items() if isinstance(value, tuple)}
    alone = {key: value for key, value in axes.items() if not isinstance(value, tuple)}
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        yield "+".join([name, *(f"{key}={_plain(value)}" for key, value in chosen.items())]), alone | chosen


def _plain(value: Value) -> str:
    """A value as job ids can have it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(value))
