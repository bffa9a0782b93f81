"""A training loop's state — nested containers, tensors, plain values — as named tensors and a JSON text, and back.

    flatten({"model": {"w": tensor}, "step": 7})
        -> {"model.w": tensor}, {"dict": [["model", {"dict": [["w", {"tensor": "model.w"}]]}], ["step", 7]]}

Nothing is pickled: what comes back is built from JSON, and can only be one of the types below, or of a class that the
program registered. A state may be nested as deep as `containers.DEEPEST`, however deep the caller's stack is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ckpt.errors import CheckpointError
from ckpt.state import ties
from ckpt.tree.build import Build, note_of
from ckpt.tree.containers import HEADED, ITEMS, PAIRS
from ckpt.tree.walk import Steps, Walk

State = dict[str, torch.Tensor]


def flatten(value: Any) -> tuple[State, dict[str, str], Any]:
    """Take a nested state apart. Nothing is copied but numpy arrays that torch can't share.

    Returns:
        The tensors by name (their keys joined by dots), the names that share an earlier one's memory with that name,
        and the rest, ready for `json.dumps`. A flat dict of tensors keeps its names.

        Tied are tensors that see the same memory in the same way; one that overlaps another is a tensor of its own.

    Raises:
        CheckpointError: if a value is of another type, contains itself, or lies deeper than `containers.DEEPEST`; the
            message names its place.
    """
    walk = Walk()
    top: list[Any] = []
    _run(walk.put(value, "", top))
    rest = {"parts": [top[0], *walk.parts]} if walk.parts else top[0]
    tied = {name: owner for name, (owner, _) in ties.tied(walk.tensors).items()}
    return {name: tensor for name, tensor in walk.tensors.items() if name not in tied}, tied, rest


def restore(rest: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put a state together again: from `flatten`'s rest, and the tensors by name, tied ones too.

    The state takes the tensors over: where it had other strides, their memory is put in that order.

    Raises:
        CheckpointError: if the text is none of `flatten`'s; and if it names a class that isn't registered.
    """
    top: list[Any] = []
    try:
        build = Build(rest, tensors)
        _run(build.put(build.parts[0], top))
    except _DAMAGE as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error
    return top[0]


def restore_named(rest: Any, tensors: Mapping[str, torch.Tensor]) -> State:
    """Some of the state's tensors as they were, by name, without what they lay in; taken over as `restore` does.

    Raises:
        CheckpointError: if the text is none of `flatten`'s.
    """
    try:
        notes = {note["name"]: note for note in map(note_of, _tensor_nodes(rest))}
        build = Build(rest, tensors)
        return {name: build.tensor(notes.get(name, name)) for name in tensors}
    except _DAMAGE as error:
        raise CheckpointError(f"the structure of the state is damaged: {type(error).__name__}: {error}") from error


def plain_values(rest: Any) -> int:
    """How many values the text holds that are no containers, no tensors, and no attributes of a container.

    Raises:
        CheckpointError: if the text is none of `flatten`'s.
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
"""What a text that `flatten` did not write raises where it is put together."""


def _run(walk: Steps | None) -> None:
    """Do a walk, and the walks within it: as a recursion would, without its stack."""
    stack = [walk] if walk else []
    while stack:
        inner = next(stack[-1], None)
        if inner is None:
            stack.pop()
        else:
            stack.append(inner)


def _tensor_nodes(rest: Any) -> Iterator[Any]:
    """What the nodes of all tensors say; a state's own words never stand where a kind does."""
    left = [rest]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            left += [content for kind, content in node.items() if kind != "tensor"]
            if "tensor" in node:
                yield node["tensor"]
