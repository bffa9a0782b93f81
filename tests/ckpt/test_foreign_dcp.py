"""DCP checkpoints of other programs: plain values beside tensors, nested states, contradictory metadata."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

import ckpt
from ckpt import CheckpointError, CheckpointWarning

STATE: dict[str, Any] = {
    "model": {"layers.0.weight": torch.arange(6.0).reshape(2, 3), "empty": torch.ones(0, 3)},
    "optimizer": {
        "state": {"0": {"exp_avg": torch.ones(3).bfloat16(), "step": torch.tensor(4.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": ["layers.0.weight"]}],
    },
    "train_state": {"step": 7, "loss": 0.5},
    "dataloader": {"dp_rank_0": b"bytes"},
    "mixed": [torch.ones(2), 5],
}


def save(state: dict[str, Any], directory: Path) -> Path:
    """Save with DCP itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.save(state, checkpoint_id=directory, no_dist=True)
    return directory


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves of a nested state, tensors as lists."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, each in pairs for name, leaf in flat(each, f"{place}/{key}").items()}
    return {place: (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value}


def test_a_training_state(tmp_path: Path) -> None:
    """Tensors and plain values come back nested as they were saved; a part comes by the flat names that `inspect`
    lists, which counts the plain values.
    """
    directory = save(STATE, tmp_path / "step-7")
    assert flat(STATE) == flat(ckpt.load(directory))
    found = ckpt.inspect(directory)
    assert found.tensors is not None
    assert {
        "model.layers.0.weight",
        "model.empty",
        "optimizer.state.0.exp_avg",
        "optimizer.state.0.step",
        "mixed.0",
    } == {each.name for each in found.tensors}
    assert (found.strategy, found.plain_values) == ("torch_dcp", 7)
    part = ckpt.load(directory, ["optimizer.state.0.exp_avg"])
    assert torch.equal(STATE["optimizer"]["state"]["0"]["exp_avg"], part["optimizer.state.0.exp_avg"])
    with pytest.raises(CheckpointError, match=r"has no tensor 'train_state.step'"):
        ckpt.load(directory, ["train_state.step"])


def test_on_the_command_line(tmp_path: Path) -> None:
    """`load` prints the digest, `inspect` the tensors and the number of plain values."""
    directory = save(STATE, tmp_path / "step-7")
    for command, expected in (("load", "5 tensors, digest"), ("inspect", "torch_dcp, 5 tensors, 7 plain values")):
        done = subprocess.run(
            [sys.executable, "-m", "ckpt", command, str(directory)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"COLUMNS": "300"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout


def test_a_value_that_would_run_something(tmp_path: Path) -> None:
    """It is left out, and named with what it holds; nothing has run, and all else is there."""
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> object:
            return Path.touch, (sprung,)

    state = {"w": torch.ones(3), "arguments": argparse.Namespace(a=1), "step": 4}
    directory = save(state, tmp_path / "c")
    with pytest.warns(CheckpointWarning, match=r"not loaded: arguments: it holds argparse.Namespace"):
        loaded = ckpt.load(directory)
    assert ({"w", "step"}, 4) == (set(loaded), loaded["step"])
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    place = next(place for index, place in metadata.storage_data.items() if index.fqn == "arguments")
    trap = tmp_path / "trap.pt"
    torch.save(Trap(), trap)
    (directory / "trap.distcp").write_bytes(trap.read_bytes())
    place.relative_path, place.offset, place.length = "trap.distcp", 0, trap.stat().st_size
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.warns(CheckpointWarning, match="none was run"):
        ckpt.load(directory)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([], "its chunks have 0 elements, expected 6"),
        ([((0, 0), (1, 3))], "its chunks have 3 elements, expected 6"),
        ([((0, 0), (1, 3)), ((0, 0), (1, 3))], "two of its chunks overlap"),
        ([((0, 0), (2, 2)), ((1, 1), (1, 2))], "two of its chunks overlap"),
        ([((1, 0), (2, 3))], "is not inside its shape"),
        ([((0, 0), (-2, -3))], "is not inside its shape"),
        ([((0,), (6,))], "it has 2 dimensions, and a chunk of it 1 and 1"),
        ([((0, 0), (1, 3)), ((1, 0), (1, 3))], "one of its chunks is in no file"),
    ],
)
def test_chunks_that_are_not_the_tensor(tmp_path: Path, chunks: list[Any], told: str) -> None:
    """Metadata whose chunks leave a part of a tensor, or don't fit it, are one message, and no tensor is returned."""
    directory = save({"w": torch.arange(6.0).reshape(2, 3), "step": 4}, tmp_path / "c")
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    metadata.state_dict_metadata["w"].chunks = [
        ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in chunks
    ]
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    for look in (ckpt.load, ckpt.inspect):
        with pytest.raises(CheckpointError, match=f"metadata is damaged: tensor 'w': .*{told}"):
            look(directory)


@pytest.mark.parametrize(
    "paths",
    [
        None,
        "text",
        {},
        {"w": ("a",), "step": ("a", "b")},
        {"w": ("a",), "step": ("a",)},
        {"w": 3, "step": ()},
        {"w": ("x",) * 5000, "step": ("y",)},
    ],
)
def test_paths_that_make_no_sense(tmp_path: Path, paths: Any) -> None:
    """Where the metadata don't say how the state was nested, or nonsense, it comes back flat."""
    directory = save({"w": torch.ones(3), "step": 4}, tmp_path / "c")
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    metadata.planner_data = paths
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    loaded = ckpt.load(directory)
    assert ({"w", "step"}, 4) == (set(loaded), loaded["step"])


def test_a_path_with_a_huge_step(tmp_path: Path) -> None:
    """A number that would make a list of 10^12 items makes none."""
    directory = save({"w": torch.ones(3), "step": 4}, tmp_path / "c")
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    metadata.planner_data = {"w": ("l", 10**12), "step": ("step",)}
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    assert [10**12] == list(ckpt.load(directory)["l"])


RANK = """
import sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

directory, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", store=dist.FileStore(directory + ".store", 2), rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
rows = distribute_tensor(torch.arange(15.0).reshape(5, 3), mesh, [Shard(0)])
columns = distribute_tensor(torch.arange(15.0).reshape(5, 3), mesh, [Shard(1)])
same = distribute_tensor(torch.ones(4), mesh, [Replicate()])
state = {"model": {"rows": rows, "columns": columns, "same": same}, "train_state": {"step": 7}}
dcp.save(state, checkpoint_id=directory)
dist.destroy_process_group()
"""


def test_what_two_ranks_saved(tmp_path: Path) -> None:
    """DTensors that two ranks saved, cut by rows and by columns, come back whole, with the plain values."""
    directory = tmp_path / "c"
    commands = [[sys.executable, "-c", RANK, str(directory), str(rank)] for rank in range(2)]
    started = [subprocess.Popen(command) for command in commands]
    assert [0, 0] == [process.wait() for process in started]
    loaded = ckpt.load(directory)
    whole = torch.arange(15.0).reshape(5, 3)
    assert torch.equal(whole, loaded["model"]["rows"])
    assert torch.equal(whole, loaded["model"]["columns"])
    assert torch.equal(torch.ones(4), loaded["model"]["same"])
    assert {"step": 7} == loaded["train_state"]
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    assert len(metadata.state_dict_metadata["model.rows"].chunks) == 2
