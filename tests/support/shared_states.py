"""A state with DTensors, and what ranks do with it in tests; the values don't depend on the number of ranks."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import ckpt
from ckpt import reading, together
from ckpt.dcp.files_writer import FilesWriter
from ckpt.errors import CheckpointError

BYTES = b"\x00bytes\xff"
RANDOM = torch.Generator().manual_seed(3).get_state()

PLACEMENTS: dict[str, Placement] = {
    "embed": Shard(0), "columns": Shard(1), "norm": Replicate(), "scalar": Replicate(), "empty": Shard(0),
    "mask": Shard(0), "half": Shard(0),
}  # fmt: skip


def whole(seed: int) -> dict[str, torch.Tensor]:
    """The values of the DTensors; sizes that 2 and 3 ranks can't divide evenly."""
    random = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(7, 3, generator=random),
        "columns": torch.randn(4, 5, generator=random),
        "norm": torch.randn(6, generator=random),
        "scalar": torch.randn((), generator=random),
        "empty": torch.empty(0, 3),
        "mask": torch.randn(1, 4, generator=random) > 0,  # only rank 0 has a row
        "half": torch.randn(5, 2, generator=random).to(torch.bfloat16),
    }


def state_of(seed: int) -> dict[str, Any]:
    """This rank's part of a state: DTensors, two of them tied, beside plain tensors and values."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model: dict[str, Any] = {
        name: distribute_tensor(values, mesh, [PLACEMENTS[name]]) for name, values in whole(seed).items()
    }
    return {
        "model": model | {"head": model["embed"]},
        "parameter": torch.nn.Parameter(distribute_tensor(torch.arange(5.0) + seed, mesh, [Shard(0)])),
        "buffer": torch.arange(4) + seed,
        "own": torch.full((1000,), dist.get_rank()),
        "rank": dist.get_rank(),
        "array": np.arange(3) + seed,
        "step": seed,
        "bytes": BYTES,
        "random": RANDOM,
        "history": [0.5, ("a", None)],
    }


def on_grid(seed: int) -> dict[str, Any]:
    """This rank's part of a state on a mesh of two dimensions, of which some tensors use one."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    values = whole(seed)
    return {
        "both": distribute_tensor(values["embed"], grid, [Shard(0), Shard(1)]),
        "mixed": distribute_tensor(values["columns"], grid, [Replicate(), Shard(0)]),
        "one": distribute_tensor(values["half"], grid["data"], [Shard(0)]),
    }


def save(path: Path, seed: int) -> None:
    """Save on every rank."""
    ckpt.save(state_of(seed), path)


def save_grid(path: Path, seed: int) -> None:
    """Save what lies on a mesh of two dimensions."""
    ckpt.save(on_grid(seed), path)


def save_beside_training(path: Path) -> float:
    """Save while the default group is busy: rank 0 has begun a reduction that the others begin after the save."""
    state, total = state_of(1), torch.ones(())
    if dist.get_rank():
        ckpt.save(state, path)
        dist.all_reduce(total)
        return total.item()
    running = dist.all_reduce(total, async_op=True)
    ckpt.save(state, path)
    running.wait()
    return total.item()


def save_where_rank_1_has(path: Path, name: str, value: Any) -> None:
    """Save a state that has one more value on rank 1."""
    state = state_of(2)
    if dist.get_rank() == 1:
        state["model"][name] = distribute(value) if isinstance(value, torch.Tensor) else value
    ckpt.save(state, path)


def distribute(values: torch.Tensor) -> DTensor:
    """Make a DTensor on one rank, without the others."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return DTensor.from_local(values, mesh, [Replicate()], run_check=False)


def save_partial(path: Path) -> None:
    """Save a DTensor that is still to be reduced."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    ckpt.save({"loss": DTensor.from_local(torch.ones(2), mesh, [Partial()])}, path)


def save_without_a_group(path: Path) -> None:
    """Save DTensors that outlived their process group."""
    state = state_of(1)
    dist.destroy_process_group()
    ckpt.save(state, path)


def save_elsewhere_on_rank_1(path: Path) -> None:
    """Save to a name of its own on every rank."""
    ckpt.save(state_of(2), path.with_name(f"{path.name}-{dist.get_rank()}"))


def save_late(path: Path, late: int) -> str:
    """Save on two ranks, of which one comes when the other has given up; then again. Returns the first try's error."""
    store = dist.distributed_c10d._get_default_store()
    state = state_of(2)
    if dist.get_rank() == late:
        store.wait(["the other rank has given up"])
    try:
        ckpt.save(state, path, timeout_s=0.2)
    except CheckpointError as error:
        store.set("the other rank has given up", "")
        ckpt.save(state, path)
        return str(error)
    return ""


def save_on_rank_0_only(path: Path) -> None:
    """Save as one does a state without DTensors."""
    state = state_of(2)
    if dist.get_rank() == 0:
        ckpt.save(state, path, timeout_s=0.2)


def save_while_rank_1_fails(path: Path, failure: Callable[..., Any]) -> None:
    """Save, and on rank 1 call this instead of writing."""
    state = state_of(2)
    with mock.patch.object(FilesWriter, "write_data", failure) if dist.get_rank() == 1 else nullcontext():
        ckpt.save(state, path)


def full_disk(*_: Any) -> None:
    """Fail as a write to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die(*_: Any) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def load(path: Path, seed: int, verify: bool = True) -> list[bool]:
    """Load into a state of other values; returns whether this rank has what it should, by tensor."""
    state, expected = state_of(seed + 1), state_of(seed)
    filled = ckpt.load(path, into=state, verify=verify)
    assert filled.state["model"]["embed"] is state["model"]["embed"]
    assert (seed, BYTES) == (filled.state["step"], filled.state["bytes"])
    names = [*expected["model"], "parameter", "buffer"]
    return [same((state | state["model"])[name], (expected | expected["model"])[name]) for name in names]


def same(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether this rank holds the same values of two tensors."""
    return torch.equal(_held(tensor), _held(expected))


def _held(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def load_grid(path: Path, seed: int) -> bool:
    """Load into a state on a mesh of two dimensions."""
    state, expected = on_grid(seed + 1), on_grid(seed)
    ckpt.load(path, into=state)
    return all(same(tensor, expected[name]) for name, tensor in state.items())


def load_with(path: Path, name: str, values: torch.Tensor) -> None:
    """Load into a state in which all ranks have another tensor."""
    state = state_of(3)
    state["model"][name] = distribute(values)
    try:
        ckpt.load(path, into=state)
    finally:
        assert same(state["model"]["columns"], state_of(3)["model"]["columns"])


def save_on_rank_0_and_load(path: Path) -> None:
    """Save on rank 0, and load on the others."""
    state = state_of(2)
    if dist.get_rank() == 0:
        ckpt.save(state, path)
    else:
        ckpt.load(path, into=state)


def load_while_it_is_replaced(path: Path, successor: Path) -> None:
    """Load on every rank; when rank 0 has, rank 1 replaces the checkpoint, and then loads."""
    store = dist.distributed_c10d._get_default_store()
    state = state_of(1)

    def one(*arguments: Any) -> Any:
        if dist.get_rank() == 1:
            store.wait(["rank 0 has loaded"])
            path.rename(path.with_name("old"))
            successor.rename(path)
            return reading.of_one(*arguments)
        result = reading.of_one(*arguments)
        store.set("rank 0 has loaded", "")
        return result

    with mock.patch.object(together, "of_one", one):
        ckpt.load(path, into=state)


def check(path: Path, seed: int) -> None:
    """A process by itself loads the whole state of that seed."""
    state = ckpt.load(path)
    assert all(torch.equal(values, state["model"][name]) for name, values in whole(seed).items())
    assert (seed, seed) == (state["step"], state["array"][0])


def flip(file: Path) -> None:
    """Damage every tensor of a file, each in the middle of its bytes."""
    content = bytearray(file.read_bytes())
    for position in range(4096, len(content)):
        content[position] ^= 1
    file.write_bytes(content)
