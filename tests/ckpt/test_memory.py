"""Loaded tensors are as torch's own: aligned, resizable, freed one by one; and training goes on from them exactly."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt.formats.shard_files import select
from ckpt.registry import create, names
from ckpt.state import memory
from ckpt.strategies.safetensors_tuned import SafetensorsTuned

OF_TORCH = {"torch_save", "torch_checkpointing"}
"""Strategies whose tensors are `torch.load`'s, whose storages can't be resized."""


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    """Odd sizes and all widths of elements, so that nothing is aligned by luck."""
    generator = torch.Generator().manual_seed(3)
    return {
        "three bytes": torch.randint(256, (3,), generator=generator, dtype=torch.uint8),
        "bool": torch.rand(13, generator=generator) > 0.5,
        "half": torch.randn(5, 7, generator=generator).half(),
        "bfloat16": torch.randn(9, generator=generator).bfloat16(),
        "matrix": torch.randn(33, 65, generator=generator),
        "large": torch.randn(1025, 1025, generator=generator),
        "complex": torch.randn(3, dtype=torch.complex128, generator=generator),
        "0-d": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "rng": torch.get_rng_state(),
    }


@pytest.mark.parametrize("by_name", [False, True], ids=["whole", "by name"])
def test_memory_of_loaded_tensors(strategy: str, by_name: bool, tmp_path: Path) -> None:  # pytest's
    """Each tensor has a storage of its own, beginning at a multiple of 64, with just its bytes, to be resized."""
    state = tensors_of_all_kinds()
    ckpt.save(state, tmp_path / "final", strategy)
    if by_name and create(strategy).capabilities.partial_load is False:
        pytest.skip("this strategy loads whole checkpoints only")
    loaded = ckpt.load(tmp_path / "final", ["three bytes", "matrix", "complex"] if by_name else None)
    for name, tensor in loaded.items():
        storage = tensor.untyped_storage()
        assert tensor.data_ptr() % 64 == 0, name
        assert (0, tensor.nbytes) == (tensor.storage_offset(), storage.nbytes()), name
        assert torch.equal(state[name], tensor)
        if strategy not in OF_TORCH:
            storage.resize_(0)
            storage.resize_(state[name].nbytes)
            tensor.copy_(state[name])
            assert torch.equal(state[name], tensor)
    addresses = [tensor.data_ptr() for tensor in loaded.values() if tensor.numel()]
    assert len(addresses) == len(set(addresses))


def test_a_save_leaves_the_callers_tensors_as_they_are(strategy: str, tmp_path: Path) -> None:
    """A training loop may resize its tensors after a save as it may before, as FSDP does it."""
    state = {"w": torch.ones(1000), "half": torch.ones(10).half()}
    ckpt.save(state, tmp_path / "final", strategy)
    for tensor in state.values():
        tensor.untyped_storage().resize_(0)


def test_generators_go_on(strategy: str, tmp_path: Path) -> None:
    """torch's generator takes a loaded state, and goes on as if it hadn't been interrupted."""
    torch.manual_seed(5)
    torch.rand(100)
    ckpt.save({"pad": torch.ones(3, dtype=torch.uint8), "torch": torch.get_rng_state()}, tmp_path / "final", strategy)
    expected = torch.rand(10)
    torch.set_rng_state(ckpt.load(tmp_path / "final")["torch"])
    assert torch.equal(expected, torch.rand(10))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, history_size=5),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def a_model() -> torch.nn.Module:
    """A small one, of odd sizes."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 3))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Some steps on random data."""
    for _ in range(steps):
        data, target = torch.randn(29, 13), torch.randn(29, 3)

        def loss() -> Any:
            optimizer.zero_grad()
            difference = torch.nn.functional.mse_loss(model(data), target)  # noqa: B023  # called at once
            difference.backward()
            return difference

        optimizer.step(loss)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, strategy: str, tmp_path: Path) -> None:
    """Model, optimizer and generators saved and loaded in the middle of a run: its end is the same, bit for bit."""
    model = a_model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(2)
    random.seed(2)
    train(model, optimizer, 4)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }
    ckpt.save(state, tmp_path / "final", strategy)
    train(model, optimizer, 4)

    resumed = a_model()
    again = OPTIMIZERS[kind](resumed.parameters())
    loaded = ckpt.load(tmp_path / "final")
    resumed.load_state_dict(loaded["model"], assign=True)
    again = OPTIMIZERS[kind](resumed.parameters())
    again.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["torch"])
    random.setstate(loaded["python"])
    train(resumed, again, 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_own() -> None:
    """A tensor whose memory is its own stays; a view, a foreign buffer and what is not aligned are copied."""
    mine = torch.randn(40)
    assert memory.own(mine) is mine
    for other in (mine[1:], torch.frombuffer(bytearray(64), dtype=torch.uint8), mine.reshape(4, 10).T):
        copy = memory.own(other)
        assert torch.equal(other, copy)
        assert copy.untyped_storage().resizable()
        assert copy.data_ptr() != other.data_ptr()


LOAD = """
import sys, ckpt
for path in sys.argv[1:]:
    try:
        ckpt.load(path)
        print("loaded")
    except ckpt.CheckpointError as error:
        print("CheckpointError:", str(error).replace(chr(10), " "))
"""


def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    """One message that says so, for every strategy, to a user who may not read the data."""
    finals = []
    for name in names():
        if all(importlib.util.find_spec(m.partition(".")[0]) for m in create(name).requires):
            ckpt.save({"w": torch.ones(5000), "step": 1}, tmp_path / name, name)
            finals.append(tmp_path / name)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "checkpoint.json":
            path.chmod(0)
    command = [sys.executable, "-c", LOAD, *map(str, finals)]
    if not os.geteuid():  # root may read everywhere, until it gives that up
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for final, line in zip(finals, done.stdout.splitlines(), strict=True):
        assert line.startswith("CheckpointError: "), final.name
        assert "ermission denied" in line or "PERMISSION_DENIED" in line, line


@pytest.mark.parametrize("by_name", [False, True], ids=["whole", "by name"])
def test_a_failing_check_ends_the_load(by_name: bool, tmp_path: Path) -> None:  # pytest's
    """What a check raises is raised, and not all is read before that."""
    SafetensorsTuned().save({str(number): torch.ones(2**20) for number in range(16)}, tmp_path)
    seen = []

    def check(name: str, _: torch.Tensor) -> None:
        seen.append(name)
        raise ckpt.CheckpointError(name)

    with pytest.raises(ckpt.CheckpointError):
        SafetensorsTuned(threads=1).load_checked(tmp_path, [str(n) for n in range(16)] if by_name else None, check)
    assert len(seen) < 16


def test_names_take_linear_time() -> None:
    """Each name that is asked for is compared a few times, not with all others."""
    compared = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    known = [Name(f"n{number}") for number in range(2000)]
    assert known == select(known, [Name(name) for name in known], Path("x"))
    assert compared < 20 * len(known)
