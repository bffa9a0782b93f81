"""Loads into a state that exists: what is filled, what is returned, and that nothing changes if something differs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckpt
from ckpt.in_place import Filled
from ckpt.registry import create, names
from ckpt.strategy import Strategy
from support.strategies import usable

IN_PLACE = [name for name in names() if create(name).capabilities.loads_in_place]
REFUSING = [name for name in names() if name not in IN_PLACE]


def test_which_can() -> None:
    """Those that the documentation of `load` names."""
    dcp = ["torch_dcp", "torch_dcp_direct"]
    assert sorted(IN_PLACE) == ["safetensors_tuned", "tensorstore_tuned", "torch_checkpointing", *dcp]
    assert all(f"`{name}`" in (ckpt.load.__doc__ or "") for name in IN_PLACE)


def a_model(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model of odd sizes with tied weights, and an optimizer that has made some steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(13, 37), torch.nn.BatchNorm1d(37), torch.nn.Linear(37, 13), torch.nn.Linear(13, 37)
    )
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 * seed)
    train(model, optimizer, seed)
    return model, optimizer


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some steps on random data."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(29, 13)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_training_run_goes_on(name: str, tmp_path: Path) -> None:
    """Model and optimizer of another run become those of the first, where they are; then both runs go on equally."""
    usable(name)
    model, optimizer = a_model(1)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1, "rng": random.getstate()}
    ckpt.save(state, tmp_path / "final", name)

    other, its_optimizer = a_model(2)
    into = {"model": other.state_dict(), "optimizer": its_optimizer.state_dict(), "step": 2, "rng": None}
    addresses = [parameter.data_ptr() for parameter in other.parameters()]
    filled = ckpt.load(tmp_path / "final", into=into)
    assert isinstance(filled, Filled)
    assert (filled.missing, filled.unexpected) == ((), ())
    assert (filled.state["step"], filled.state["rng"]) == (1, random.getstate())
    assert into["step"] == 2
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
        assert filled.state["model"][key] is into["model"][key]
    its_optimizer.load_state_dict(filled.state["optimizer"])
    assert addresses == [parameter.data_ptr() for parameter in other.parameters()]
    assert all(parameter.requires_grad for parameter in other.parameters())
    for each, its in ((model, optimizer), (other, its_optimizer)):
        torch.manual_seed(5)
        train(each, its, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def odd_state(value: float) -> dict[str, Any]:
    """Tensors and arrays of all kinds, most of which no file can be read into."""
    base = torch.full((6, 8), value)
    shared = torch.full((5,), value)
    return {
        "transposed": torch.full((7, 3), value).T,
        "columns": base[:4, 2:5],
        "rows": base[4:],
        "strided": torch.full((20,), value)[::3],
        "0-d": torch.tensor(value),
        "empty": torch.empty(0, 3),
        "leaf": torch.full((3,), value, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.full((3, 3), value).T),
        "conjugate": torch.complex(torch.full((4,), value), torch.full((4,), 2 * value)).conj(),
        "bfloat16": torch.full((9,), value).bfloat16(),
        "tied": [shared, shared],
        "array": np.full((3, 4), value),
        "within": (np.int64(value), {"deep": torch.full((2,), value), "none": None}),
    }


def as_lists(value: Any) -> Any:
    """A state with lists for tensors and arrays, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return [as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", IN_PLACE)
def test_tensors_of_all_kinds(name: str, tmp_path: Path) -> None:
    """Non-contiguous, tied, empty and lazily conjugated tensors, parameters and arrays are filled where they are."""
    usable(name)
    ckpt.save(odd_state(3.0), tmp_path / "final", name)
    into = odd_state(7.0)
    filled = ckpt.load(tmp_path / "final", into=into)
    assert as_lists(filled.state) == as_lists(odd_state(3.0))
    into["within"] = (np.int64(3), into["within"][1])  # a plain value isn't filled
    assert as_lists(into) == as_lists(odd_state(3.0))
    assert filled.state["array"] is into["array"]
    assert into["columns"]._base is into["rows"]._base
    assert into["transposed"].stride() == (1, 3)


def test_names_that_differ(tmp_path: Path) -> None:
    """Both lists are in the error, and nothing is changed; strict=False loads what both have and returns the lists."""
    ckpt.save({"a": torch.ones(3), "b": {"c": torch.ones(2)}, "array": np.ones(2), "n": 5}, tmp_path / "final")
    into = {"a": torch.zeros(3), "b": {"d": torch.zeros(2)}, "n": 4}
    with pytest.raises(ckpt.CheckpointError, match=r"lacks 'b\.d'; the state lacks 'b\.c', 'array'\..*strict=False"):
        ckpt.load(tmp_path / "final", into=into)
    assert not into["a"].any()  # type: ignore[attr-defined]
    filled = ckpt.load(tmp_path / "final", into=into, strict=False)
    assert (filled.missing, filled.unexpected) == (("b.d",), ("b.c", "array"))
    assert as_lists(into) == {"a": [1, 1, 1], "b": {"d": [0, 0]}, "n": 4}
    assert as_lists(filled.state) == {"a": [1, 1, 1], "b": {"c": None}, "array": None, "n": 5}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(3, 1), r"'b' is float32 \[3, 1\], and float32 \[1, 3\] in the checkpoint"),
        (torch.zeros(1, 3).half(), r"'b' is float16 \[1, 3\], and float32"),
        (np.zeros((1, 3, 1), np.float32), r"'b' is float32 \[1, 3, 1\]"),
        (np.zeros((2, 6), np.float32)[:1, ::2], r"'b' of the state can't be filled: an array must be C-contiguous"),
    ],
)
def test_tensors_that_differ(other: Any, message: str, tmp_path: Path) -> None:
    """Another shape or dtype is named before anything is changed."""
    ckpt.save({"a": torch.ones(3), "b": torch.ones(1, 3)}, tmp_path / "final")
    into = {"a": torch.zeros(3), "b": other}
    with pytest.raises(ckpt.CheckpointError, match=rf"{message}.* [Nn]o tensor was changed"):
        ckpt.load(tmp_path / "final", into=into)
    assert not into["a"].any()


def test_memory_that_is_shared_otherwise(tmp_path: Path) -> None:
    """What the checkpoint has once is copied to both; what it has twice can't be read into one."""
    weight = torch.arange(5.0)
    ckpt.save({"a": weight, "b": weight}, tmp_path / "tied")
    into = {"a": torch.zeros(5), "b": torch.zeros(5)}
    ckpt.load(tmp_path / "tied", into=into)
    assert as_lists(into) == {"a": weight.tolist(), "b": weight.tolist()}

    ckpt.save({"a": torch.ones(5), "b": torch.ones(3)}, tmp_path / "untied")
    memory = torch.zeros(6)
    with pytest.raises(ckpt.CheckpointError, match=r"'a' and 'b' share memory.*no tensor was changed"):
        ckpt.load(tmp_path / "untied", into={"a": memory[:5], "b": memory[3:]})
    assert not memory.any()
    ckpt.load(tmp_path / "untied", into={"a": memory[1:], "c": memory}, strict=False)
    assert memory.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", IN_PLACE)
def test_damage_is_noticed(name: str, tmp_path: Path) -> None:
    """A flipped bit is an error which says that the state may be overwritten; verify=False doesn't look."""
    usable(name)
    data = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (512, 512), np.uint8))
    ckpt.save({"data": data}, tmp_path / "final", name)
    files = [path for path in (tmp_path / "final").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    into = {"data": torch.zeros_like(data)}
    with pytest.raises(ckpt.CheckpointError, match=r"'data' is not what was saved.*may be overwritten in part"):
        ckpt.load(tmp_path / "final", into=into)
    ckpt.load(tmp_path / "final", into=into, verify=False)
    assert int((into["data"] != data).sum()) == 1


def test_an_incomplete_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """A file that is too short is noticed before anything is read."""
    ckpt.save({"a": torch.ones(5000)}, tmp_path / "final")
    path = tmp_path / "final" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    into = {"a": torch.zeros(5000)}
    with pytest.raises(ckpt.CheckpointError, match="is incomplete"):
        ckpt.load(tmp_path / "final", into=into)
    assert not into["a"].any()


@pytest.mark.parametrize("name", REFUSING)
def test_strategies_that_cannot(name: str, tmp_path: Path) -> None:
    """The error names the strategy and what to do instead, and nothing is changed."""
    strategy: Strategy = usable(name)
    ckpt.save({"a": torch.ones(5)}, tmp_path / "final", name)
    into = {"a": torch.zeros(5)}
    with pytest.raises(ckpt.CheckpointError, match=rf"strategy {re.escape(strategy.label)} can't load into tensors"):
        ckpt.load(tmp_path / "final", into=into)
    assert not into["a"].any()


def test_other_refusals(tmp_path: Path) -> None:
    """Another program's checkpoint, and names beside a state."""
    torch.save({"a": torch.ones(5)}, tmp_path / "file.pt")
    with pytest.raises(ckpt.CheckpointError, match="written by another program"):
        ckpt.load(tmp_path / "file.pt", into={"a": torch.zeros(5)})
    with pytest.raises(ckpt.CheckpointError, match="can't be combined"):
        ckpt.load(tmp_path / "file.pt", ["a"], into={"a": torch.zeros(5)})


def test_autograd_notices(tmp_path: Path) -> None:
    """A graph that needs the old values raises an error instead of computing with the new ones."""
    weight = torch.ones(3, requires_grad=True)
    ckpt.save({"w": torch.full((3,), 2.0)}, tmp_path / "final")
    loss = (weight * weight).sum()
    ckpt.load(tmp_path / "final", into={"w": weight})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (weight * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [4, 4, 4]


PEAK = """
import sys, torch, ckpt
from pathlib import Path

def status(key):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024

path, direct, strided = sys.argv[1], sys.argv[2] == "direct", sys.argv[3] == "strided"
def a_state(value):
    shape = (1000, 16001) if strided else (16001, 1000)
    tensors = {str(number): torch.full(shape, value) for number in range(4)}
    return {name: tensor.T for name, tensor in tensors.items()} if strided else tensors

ckpt.save({"small": torch.ones(3)}, path + "/warm-up")
ckpt.load(path + "/warm-up", into={"small": torch.zeros(3)}, direct=direct)
ckpt.save(a_state(1.0), path + "/final")
into = a_state(2.0)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
ckpt.load(path + "/final", into=into, direct=direct)
peak = status("VmHWM")
assert all(bool((tensor == 1).all()) for tensor in into.values())
print(peak - before, sum(tensor.nbytes for tensor in into.values()))
"""


@pytest.mark.parametrize("direct", ["direct", "buffered"])
@pytest.mark.parametrize("kind", ["contiguous", "strided"])
def test_no_second_copy(direct: str, kind: str, fresh_python: Callable[..., str], tmp_path: Path) -> None:
    """A load takes at most 64 MiB beside a state of 256 MB, checksums included; and as much as its largest tensor, if
    that isn't contiguous.
    """
    extra_bytes, state_bytes = map(int, fresh_python(PEAK, str(tmp_path), direct, kind).split())
    assert state_bytes == 4 * 64_004_000
    assert extra_bytes <= 64 * 2**20 + (64_004_000 if kind == "strided" else 0)
