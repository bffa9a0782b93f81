"""How a tensor sees its memory — strides, gradients, Parameters, slices, ties — is as `torch.load` brings it back."""

from __future__ import annotations

import io
import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpt
from ckpt.errors import CheckpointError
from ckpt.registry import create, names
from ckpt.tree import nested
from support.strategies import usable

BIG = 1_000_000


def in_columns(*shape: int) -> torch.Tensor:
    """A tensor of which each element is where it would be if the dimensions were in reverse."""
    return torch.randn(*reversed(shape)).permute(*range(len(shape) - 1, -1, -1))


def a_state() -> dict[str, Any]:
    """All that a `weights_only` load brings back, and that has no gaps."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    frozen = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    image = torch.randn(2, 3, 4, 5)
    shared = {"lr": 0.1, "betas": [0.9, 0.99]}
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return {
        "model": model.state_dict(),
        "parameters": list(model.parameters()),
        "weight": weight,
        "tied": weight,
        "data": weight.data,
        "frozen": frozen,
        "leaf": torch.randn(3, requires_grad=True),
        "channels_last": image.to(memory_format=torch.channels_last),
        "tied channels_last": [image := image.to(memory_format=torch.channels_last), image, image.detach()],
        "parameter in columns": torch.nn.Parameter(in_columns(3, 4)),
        "columns": in_columns(2, 3, 4),
        "one channel": torch.randn(2, 1, 4, 4).to(memory_format=torch.channels_last),
        "empty": in_columns(3, 0),
        "number": torch.tensor(1.5),
        "expanded": torch.randn(1).expand(BIG),
        "expanded twice": torch.randn(3, 1, 2).expand(3, 4, 2),
        "expanded number": torch.tensor(2, dtype=torch.int16).expand(2, 2),
        "windows": torch.arange(10.0).unfold(0, 3, 1),
        "groups": [shared, shared],
        "plain": [None, True, 1, -0.0, float("inf"), 1j, "a", b"b", bytearray(b"c"), (1,), {2}, torch.Size([1])],
        "kinds": [OrderedDict(a=1), Counter("ab"), torch.float16, torch.device("cpu")],
    }


def facts(value: Any, seen: dict[Any, int] | None = None) -> Any:
    """A value as something that `==` compares: every type, how each tensor sees its memory, and what is shared."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        memory = seen.setdefault((value.data_ptr(), value.stride()), len(seen)) if value.numel() else None
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        known = type(value), value.dtype, value.shape, value.stride(), value.requires_grad, value.is_leaf
        return *known, memory, bits
    if isinstance(value, dict):
        pairs = [(facts(key, seen), facts(each, seen)) for key, each in value.items()]
        return type(value), seen.setdefault(id(value), len(seen)), pairs, facts(getattr(value, "__dict__", None), seen)
    if isinstance(value, list | tuple):
        number = seen.setdefault(id(value), len(seen)) if isinstance(value, list) else None
        return type(value), number, [facts(each, seen) for each in value]
    return type(value), repr(value)


@pytest.mark.parametrize("strategy", names())
def test_nothing_differs_from_torch_load(strategy: str, tmp_path: Path) -> None:
    """What `torch.load(weights_only=True)` brings back, every strategy brings back the same: types, strides, gradients,
    ties.
    """
    usable(strategy)
    state = a_state()
    torch.save(state, tmp_path / "state.pth")
    ckpt.save(state, tmp_path / "ours", strategy)
    theirs, ours = torch.load(tmp_path / "state.pth", weights_only=True), ckpt.load(tmp_path / "ours")
    for name, expected in theirs.items():
        assert facts(expected) == facts(ours[name]), name
    for name in ("tied", "data"):
        assert ours["weight"].data_ptr() == ours[name].data_ptr()


def with_attributes(pairs: dict[str, Any]) -> OrderedDict[str, Any]:
    """An OrderedDict with something noted on it."""
    made = OrderedDict(pairs)
    made._metadata = {"version": [1]}  # type: ignore[attr-defined]  # as torch does it
    return made


POOL = [*a_state().values(), [], {}, [1], (2, [3]), -0.0, complex(1, -0.0), "\ud800", b"x", 2**70, torch.Size([2])]


@given(
    st.recursive(
        st.sampled_from(POOL),
        lambda inside: st.one_of(
            st.lists(inside, max_size=4),
            st.lists(inside, max_size=4).map(tuple),
            st.dictionaries(st.text("ab.", max_size=2) | st.integers(0, 2), inside, max_size=4),
            st.dictionaries(st.text("ab.", max_size=2), inside, max_size=3).map(with_attributes),
            st.dictionaries(st.text("ab.", max_size=2), inside, max_size=3).map(Counter),
        ),
        max_leaves=8,
    )
)
@settings(deadline=None)
def test_no_state_differs_from_torch_load(state: Any) -> None:
    """The same of any state that is made of such things, some of them at several places."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    expected = torch.load(buffer, weights_only=True)
    tensors, tied, rest = nested.flatten(state)
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    found = nested.restore(json.loads(json.dumps(rest)), copies | {name: copies[owner] for name, owner in tied.items()})
    assert facts(expected) == facts(found)


@given(
    st.lists(st.integers(0, 4), max_size=4).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.permutations(range(len(size))),
            st.lists(st.booleans(), min_size=len(size), max_size=len(size)),
        )
    ),
    st.booleans(),
)
def test_any_dense_or_expanded_tensor(seen: Any, gradient: bool) -> None:
    """Any order of dimensions, and any of them expanded, come back with their strides; an expanded one stays small."""
    size, order, expanded = seen
    base = torch.randn([1 if repeat else n for n, repeat in zip(size, expanded, strict=True)]).permute(order)
    tensor = base.expand([size[axis] for axis in order]).detach().requires_grad_(gradient)
    tensors, _, rest = nested.flatten([tensor])
    assert sum(each.numel() for each in tensors.values()) <= base.numel()
    (found,) = nested.restore(rest, {name: each.contiguous().clone() for name, each in tensors.items()})
    assert torch.equal(tensor, found)
    assert (tensor.stride(), tensor.requires_grad) == (found.stride(), found.requires_grad)


@pytest.mark.parametrize("strategy", names())
def test_slices_take_what_they_show(strategy: str, tmp_path: Path) -> None:
    """A slice of a large tensor is written, and comes back, without what it was cut from; twice the same one is tied,
    and others are apart.
    """
    usable(strategy)
    whole = torch.arange(BIG, dtype=torch.float32)
    matrix = whole.view(1000, 1000)
    column = matrix[:, 3]
    state = {"rows": matrix[2:4], "again": matrix[2:4], "column": column, "steps": whole[::100_000], "part": whole[:10]}
    ckpt.save(state, tmp_path / "slices", strategy)
    assert sum(file.stat().st_size for file in (tmp_path / "slices").rglob("*") if file.is_file()) < 300_000
    found = ckpt.load(tmp_path / "slices")
    for name, tensor in state.items():
        assert torch.equal(tensor, found[name])
        assert found[name].is_contiguous()
        assert found[name].untyped_storage().nbytes() < 100_000
    assert found["rows"].data_ptr() == found["again"].data_ptr()
    found["part"][0] = 7
    assert int(found["steps"][0]) == 0


@pytest.mark.parametrize("strategy", ["torch_save", "torch_checkpointing", "torch_dcp"])
def test_slices_given_to_a_strategy(strategy: str, tmp_path: Path) -> None:
    """So it is where a strategy is called by itself; the caller's tensors are left alone."""
    usable(strategy)
    whole = torch.arange(BIG, dtype=torch.float32)
    state = {"part": whole[:10], "own": torch.ones(3)}
    create(strategy).save(state, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 100_000
    assert state["part"].data_ptr() == whole.data_ptr()
    loaded = create(strategy).load(tmp_path)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


def test_an_expanded_slice() -> None:
    """An expanded column of a large matrix is as small as the column."""
    expanded = torch.arange(BIG).view(1000, 1000)[:, 3:4].expand(1000, 50)
    tensors, _, rest = nested.flatten({"x": expanded})
    assert tensors["x"].numel() == 1000
    found = nested.restore(rest, {"x": tensors["x"].contiguous()})["x"]
    assert torch.equal(expanded, found)
    assert found.stride() == (1, 0)


def test_some_tensors_by_name() -> None:
    """Tensors by name are as the whole state has them, tied ones one again."""
    weight = torch.nn.Parameter(in_columns(3, 4))
    state = {"model": {"weight": weight, "head": weight}, "x": torch.ones(1).expand(4), "n": torch.zeros(2), "step": 1}
    tensors, tied, rest = nested.flatten(state)
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    found = nested.restore_named(rest, {"x": copies["x"], "n": copies["n"]})
    assert found["n"] is copies["n"]
    assert (4,) == tuple(found["x"].shape)
    both = nested.restore_named(rest, {name: copies[tied.get(name, name)] for name in ("model.head", "model.weight")})
    assert both["model.head"] is both["model.weight"]
    assert isinstance(both["model.head"], torch.nn.Parameter)
    assert weight.stride() == both["model.head"].stride()


def test_strides_take_no_memory() -> None:
    """Other strides are made in the memory that was loaded, once: a state need not fit into memory twice."""
    state = {"w": in_columns(3, 4), "p": torch.nn.Parameter(in_columns(2, 3, 4))}
    tensors, _, rest = nested.flatten(state)
    loaded = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in loaded.items()}
    for found in (nested.restore(rest, loaded), nested.restore_named(rest, loaded)):
        for name, tensor in state.items():
            assert torch.equal(tensor, found[name])
            assert (tensor.stride(), addresses[name]) == (found[name].stride(), found[name].data_ptr())


def test_memory_that_was_freed() -> None:
    """A tensor whose storage was resized away, as FSDP does, is refused by name: to read it would be a crash."""
    tensor = torch.ones(5)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(CheckpointError, match=r"the state's 'model\.w' has no memory"):
        nested.flatten({"model": {"w": tensor}})
