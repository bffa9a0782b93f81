"""Converts a training loop's nested state (containers, tensors, plain values) to named tensors and JSON, and back.

    flatten({"model": {"w": tensor}, "step": 7})
        -> {"model.w": tensor}, {"dict": [["model", {"dict": [["w", {"tensor": "model.w"}]]}], ["step", 7]]}

Nothing is pickled: a state is rebuilt from JSON, and holds only the types in `ckpt.tree`'s modules and classes that the
program registered. It may be nested as deep as `containers.DEEPEST`, whatever the depth of the caller's stack: instead
of recursion, `_run` runs generators ("walks"), and each yields the walks through the containers within its own.

A container that occurs several times, or lies deep, is moved to the list `parts`, and `{"part": number}` refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ckpt.errors import CheckpointError
from ckpt.state import ties
from ckpt.tree import dtensors
from ckpt.tree.build import Build, BuildWith, note_of
from ckpt.tree.containers import HEADED, ITEMS, PAIRS
from ckpt.tree.walk import Steps, Walk

State = dict[str, torch.Tensor]


def flatten(value: Any) -> tuple[State, dict[str, str], Any]:
    """Convert a nested state to tensors and JSON. Only numpy arrays that torch can't share are copied.

    Returns:
        The tensors by name (their keys joined by dots); the names that are tied to an earlier one, with that name; and
        the rest, ready for `json.dumps`. A flat dict of tensors keeps its names.

        Tied tensors have the same memory, shape and strides; one that merely overlaps another is stored separately.
        DTensors stay what they are, and are tied as far as this rank's shards show.

    Raises:
        CheckpointError: if a value has an unsupported type, contains itself, or lies deeper than
            `containers.DEEPEST`; the message names its path.
    """
    walk = Walk()
    top: list[Any] = []
    _run(walk.put(value, "", top))
    rest = {"parts": [top[0], *walk.parts]} if walk.parts else top[0]
    sharded = dtensors.among(walk.tensors)
    plain = {name: tensor for name, tensor in walk.tensors.items() if name not in sharded}
    tied = {name: owner for name, (owner, _) in ties.tied(plain).items()} | dtensors.tied(sharded)
    return {name: tensor for name, tensor in walk.tensors.items() if name not in tied}, tied, rest


@dataclass(frozen=True, slots=True)
class Leaves:
    """The tensors of a nested state, by the names that `flatten` gives them."""

    tensors: State
    """With tied ones; they share the memory of the state's tensors and arrays, but for those in `copied`."""
    leaves: dict[str, torch.Tensor | np.ndarray[Any, Any]]
    """The state's tensors and arrays themselves."""
    copied: list[str]
    """The names of arrays whose memory a tensor can't share."""


def leaves_of(value: Any) -> Leaves:
    """Return the tensors of a nested state.

    Raises:
        CheckpointError: as `flatten` does.
    """
    walk = Walk()
    _run(walk.put(value, "", []))
    return Leaves(walk.tensors, walk.leaves, walk.copied)


def restore(rest: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Rebuild a state from `flatten`'s rest and the tensors by name, including tied ones.

    The state owns the tensors afterwards: where it had other strides, their memory is reordered.

    Raises:
        CheckpointError: if `flatten` didn't write the rest, or it names a class that isn't registered.
    """
    return _built(lambda: Build(rest, tensors))


def restore_with(rest: Any, leaves: Mapping[str, Any]) -> Any:
    """Rebuild a state from `flatten`'s rest with the given tensors and arrays by name; with None where one is missing.

    Raises:
        CheckpointError: as `restore` does.
    """
    return _built(lambda: BuildWith(rest, leaves))


def _built(make: Callable[[], Build]) -> Any:
    top: list[Any] = []
    try:
        build = make()
        _run(build.put(build.parts[0], top))
    except _DAMAGE as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error
    return top[0]


def restore_named(rest: Any, tensors: Mapping[str, torch.Tensor]) -> State:
    """Return some of the state's tensors as they were, by name, without their containers; see `restore`.

    Raises:
        CheckpointError: if `flatten` didn't write the rest.
    """
    try:
        notes = {note["name"]: note for note in map(note_of, _tensor_nodes(rest))}
        build = Build(rest, tensors)
        return {name: build.tensor(notes.get(name, name)) for name in tensors}
    except _DAMAGE as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error


def plain_values(rest: Any) -> int:
    """Count the values in `flatten`'s rest, without containers, tensors and attributes of containers.

    Raises:
        CheckpointError: if `flatten` didn't write the rest.
    """
    count, left = 0, [rest]
    try:
        while left:
            node = left.pop()
            if isinstance(node, list):
                left += node
            elif isinstance(node, dict):
                ((kind, content),) = node.items()
                if kind == "parts" or kind in ITEMS:
                    left += content[:1] if kind == "attributes" else content
                elif kind in PAIRS:
                    left += [value for _, value in content]
                elif kind in HEADED:
                    left.append(content[1])
                else:
                    count += kind not in {"tensor", "array", "scalar", "part"}
            else:
                count += 1
    except _DAMAGE as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error
    return count


_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""The errors that rebuilding raises for JSON that `flatten` didn't write."""


def _run(walk: Steps | None) -> None:
    """Run a walk and the walks that it yields, as a recursion would, but without the stack."""
    stack = [walk] if walk else []
    while stack:
        inner = next(stack[-1], None)
        if inner is None:
            stack.pop()
        else:
            stack.append(inner)


def _tensor_nodes(rest: Any) -> Iterator[Any]:
    """Yield the contents of all tensor nodes. A state's own keys never occur where the JSON has a kind."""
    left = [rest]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            left += [content for kind, content in node.items() if kind != "tensor"]
            if "tensor" in node:
                yield node["tensor"]
