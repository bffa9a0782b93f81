"""Nested states taken apart and put together again."""

from __future__ import annotations

import json
import math
import random
import struct
from collections import Counter, OrderedDict, UserDict, deque, namedtuple
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import CheckpointError
from ckpt.tree import nested

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.sampled_from([torch.float16, torch.device("cpu"), torch.device("cuda:1"), torch.Size([2, 0])]),
)
KEYS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inside: st.tuples(inside, inside),
    max_leaves=3,
)
LEAVES = st.one_of(
    PLAIN,
    st.lists(st.floats(width=32), max_size=3).map(torch.tensor),
    st.lists(st.floats(width=32), max_size=3).map(lambda values: torch.nn.Parameter(torch.tensor(values))),
    st.lists(st.integers(0, 9), max_size=3).map(lambda values: np.array(values, np.int16)),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
)
STATES = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.lists(inside, max_size=3).map(tuple),
        st.dictionaries(KEYS, inside, max_size=3),
        st.dictionaries(KEYS, inside, max_size=3).map(OrderedDict),
        st.dictionaries(KEYS, inside, max_size=3).map(Counter),
        st.lists(inside, max_size=3).map(lambda items: deque(items, 5)),
        st.sets(KEYS, max_size=3),
    ),
    max_leaves=8,
)


def shape_of(value: Any) -> Any:
    """A value as something that `==` compares: types, order, every bit."""
    if isinstance(value, dict):
        return type(value), [(shape_of(key), shape_of(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | deque | set):
        inside = [shape_of(each) for each in value]
        return type(value), sorted(inside, key=repr) if isinstance(value, set) else inside
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes()
    return type(value), struct.pack(">2d", value.real, value.imag) if isinstance(value, float | complex) else repr(
        value
    )


@given(STATES)
def test_what_goes_in_comes_out(state: Any) -> None:
    """Types, order, keys, every bit, through a JSON text; and no two tensors have one name."""
    tensors, tied, rest = nested.flatten(state)
    known = tensors | {name: tensors[owner] for name, owner in tied.items()}
    assert shape_of(state) == shape_of(nested.restore(json.loads(json.dumps(rest)), known))


def test_a_flat_state_keeps_its_names() -> None:
    """Other programs look for a model's tensors under the names of its state_dict."""
    state = {"model.embed.weight": torch.ones(2), "lm_head.weight": torch.zeros(2)}
    assert list(state) == list(nested.flatten(state)[0])


def test_names_are_paths() -> None:
    """A nested tensor's name says where it lies; where two would have one, the later is numbered."""
    state = {"a": {"b": torch.ones(1), 3: [torch.ones(2)]}, "a.b": torch.ones(3)}
    assert ["a.b", "a.3.0", "a.b~2"] == list(nested.flatten(state)[0])


def test_tied_weights() -> None:
    """A tensor that stands at two places is kept once, and is one tensor again."""
    weight = torch.ones(3)
    tensors, tied, rest = nested.flatten({"embed": weight, "head": weight, "part": weight[:2]})
    assert (["embed", "part"], {"head": "embed"}) == (list(tensors), tied)
    restored = nested.restore(rest, tensors | {"head": tensors["embed"]})
    assert restored["embed"] is restored["head"]


def test_a_training_loop() -> None:
    """Model, optimizer, scheduler, step and every generator's state come back, and training goes on the same."""

    def loop(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.StepLR]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> float:
        batch = torch.randn(5, 4) + float(np.random.default_rng(random.randrange(9)).standard_normal())
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    first = loop(0)
    for _ in range(3):
        step(*first)
    state = {
        "parts": [each.state_dict() for each in first],
        "step": 3,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.default_rng(1).bit_generator.state,
    }
    tensors, tied, rest = nested.flatten(state)
    loaded = nested.restore(
        json.loads(json.dumps(rest)),
        {name: tensor.clone() for name, tensor in tensors.items()} | {n: tensors[o] for n, o in tied.items()},
    )
    expected = [step(*first) for _ in range(3)]

    second = loop(1)
    for part, values in zip(second, loaded["parts"], strict=True):
        part.load_state_dict(values)  # type: ignore[attr-defined]  # each has one
    torch.set_rng_state(loaded["torch"])
    random.setstate(loaded["python"])
    assert expected == [step(*second) for _ in range(3)]
    assert state["numpy"] == loaded["numpy"]


Point = namedtuple("Point", "x")  # noqa: PYI024  # what is tested is that it is refused
Level = IntEnum("Level", "LOW")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "builtins.object"),
        (Point(1), "Point"),
        (Level.LOW, "Level"),
        (UserDict(), "UserDict"),
        (print, "builtin_function"),
        (np.array(["text"]), "array of <U4"),
        (np.array([None]), "array of object"),
        (np.array([1], ">i4"), "array of >i4"),
        (torch.ones(2).to_sparse(), "not a plain tensor"),
        (torch.ones(2, device="meta"), "not a plain tensor"),
        ({Level.LOW: 1}, "Level, which can't be saved as a key"),
    ],
    ids=[
        "object",
        "named tuple",
        "enum",
        "user dict",
        "function",
        "texts",
        "objects",
        "big-endian",
        "sparse",
        "meta",
        "key",
    ],
)
def test_what_cannot_be_saved(value: Any, told: str) -> None:
    """It is named with its place and its type before anything is written: it would not come back as what it was."""
    with pytest.raises(CheckpointError, match=r"the state's 'outer\.0") as caught:
        nested.flatten({"outer": [value]})
    assert told in str(caught.value)


def test_a_state_that_contains_itself() -> None:
    """It is refused, and does not recurse for ever."""
    state: list[Any] = []
    state.append(state)
    with pytest.raises(CheckpointError, match="contains itself"):
        nested.flatten(state)


@pytest.mark.parametrize(
    "rest",
    [{"os.system": "x"}, {"tensor": "missing"}, {"dict": 1}, {"dict": [[1]]}, {}, {"tuple": [], "list": []},
     {"bytes": 1}, {"float": "x"}, {"dtype": "no"}, {"dict": [[[1], 2]]}],
    ids=str,
)  # fmt: skip
def test_damaged_texts(rest: Any) -> None:
    """A text that `flatten` did not make is an error, whatever it says."""
    with pytest.raises(CheckpointError):
        nested.restore(rest, {})


def test_plain_values_are_counted() -> None:
    """Containers and tensors are none."""
    state = {"step": 1, "betas": (0.9, math.inf), "model": {"w": torch.ones(1), "none": None}, "empty": []}
    assert nested.plain_values(nested.flatten(state)[2]) == 4
