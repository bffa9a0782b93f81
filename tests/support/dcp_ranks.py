"""Ranks in processes of their own, over gloo, that save and load DTensors; `python -m support.dcp_ranks` is one."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from ckpt.dcp import DirectReader, DirectWriter
from support import dcp_states

TIMEOUT_S = 300

MOST = 4

SHAPES = {"even": (16, 12), "uneven": (7, 5, 6), "few rows": (2, 9), "large": (130, 1000), "vector": (11,)}


class Processes:
    """Four ranks in processes of their own; with a smaller number, the first ones work and the others wait.

    Args:
        directory: for a file by which they meet.
    """

    def __init__(self, directory: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self._started = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, str(rank), str(directory / "store")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(MOST)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.communicate()

    def __call__(self, work: str, count: int, directory: Path, argument: str) -> None:
        """Let so many ranks do some work of this module; every one must succeed."""
        for process in self._started:
            assert process.stdin is not None
            pickle.dump((work, count, directory, argument), process.stdin)
            process.stdin.flush()
        problems = [pickle.load(process.stdout) for process in self._started if process.stdout is not None]
        assert not any(problems), "\n".join(problems)


@dataclass(frozen=True)
class Ranks:
    """The ranks that work: how many, their group, and meshes of one and of two dimensions."""

    count: int
    group: dist.ProcessGroup
    line: DeviceMesh
    plane: DeviceMesh

    @classmethod
    def of(cls, count: int) -> Ranks:
        """Make groups of the first ranks; all ranks call this."""
        numbers = torch.arange(count)
        plane = numbers.reshape(2, 2) if count == 4 else numbers.reshape(1, count)
        line = DeviceMesh("cpu", numbers, mesh_dim_names=("line",))
        return cls(count, dist.new_group(numbers.tolist()), line, DeviceMesh("cpu", plane, mesh_dim_names=("a", "b")))


def state(ranks: Ranks, *, turned: bool) -> dict[str, Any]:
    """Tensors sharded in every way over the ranks, replicated ones, and plain values; equal on all ranks.

    Args:
        ranks: that hold them.
        turned: shard other dimensions.
    """
    torch.manual_seed(3)
    made: dict[str, Any] = {"step": 7, "plain": torch.randn(40, 3)}
    for name, shape in SHAPES.items():
        full = torch.randn(shape)
        for dimension in range(len(shape)):
            at = (dimension + 1) % len(shape) if turned else dimension
            made[f"{name} {dimension}"] = distribute_tensor(full, ranks.line, [Shard(at)])
        made[f"{name} replicated"] = distribute_tensor(full, ranks.line, [Shard(0) if turned else Replicate()])
    return made | _on_two_dimensions(ranks.plane, turned=turned)


def _on_two_dimensions(mesh: DeviceMesh, *, turned: bool) -> dict[str, Any]:
    placements: dict[str, list[Any]] = {
        "both": [Shard(0), Shard(1)],
        "twice": [Shard(0), Shard(0)],
        "hybrid": [Replicate(), Shard(0)],
    }
    full = torch.randn(9, 10)
    return {
        f"mesh {name}": distribute_tensor(full, mesh, list(reversed(wanted)) if turned else wanted)
        for name, wanted in placements.items()
    }


def _blank(like: dict[str, Any]) -> dict[str, Any]:
    return {
        key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else type(value)()
        for key, value in like.items()
    }


def _compare(loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, DTensor):
            assert not any(isinstance(placement, Partial) for placement in value.placements)
            assert dcp_states.bits(loaded[key].to_local()) == dcp_states.bits(value.to_local()), key
        elif isinstance(value, torch.Tensor):
            assert dcp_states.bits(loaded[key]) == dcp_states.bits(value), key
        else:
            assert loaded[key] == value, key


def save(ranks: Ranks, directory: Path, argument: str) -> None:
    """Save the state."""
    writer: Any = (DirectWriter if argument == "direct" else FileSystemWriter)(directory / "it")
    state_dict_saver.save(state(ranks, turned=False), storage_writer=writer, process_group=ranks.group)


def load(ranks: Ranks, directory: Path, argument: str) -> None:
    """Load into a state that is sharded as it was, and otherwise."""
    for turned in (False, True):
        expected = state(ranks, turned=turned)
        loaded = _blank(expected)
        if argument == "torch":
            reader: Any = FileSystemReader(directory / "it")
        else:
            reader = DirectReader(directory / "it", verify=argument == "verifying")
        state_dict_loader.load(loaded, storage_reader=reader, process_group=ranks.group)
        _compare(loaded, expected)


def fail(ranks: Ranks, directory: Path, argument: str) -> None:
    """Save with one rank failing."""
    writer = DirectWriter(directory / "it")
    if dist.get_rank() == int(argument):
        writer._write_files = _failing  # type: ignore[method-assign]
    small = {"w": state(ranks, turned=False)["large 0"]}
    with pytest.raises(CheckpointException, match=f"the disk of rank {argument} is gone"):
        state_dict_saver.save(small, storage_writer=writer, process_group=ranks.group)
    del writer
    gc.collect()  # the error's traceback held the writer, and that the directory of the rank that did not fail


def _failing(*_: object, **__: object) -> Any:
    raise OSError(5, f"the disk of rank {dist.get_rank()} is gone")


def save_again(ranks: Ranks, directory: Path, _: str) -> None:
    """Save under two names, twice under one of them, with plans that DCP keeps."""
    expected = {"w": state(ranks, turned=False)["large 0"]}
    for name in ("it", "other", "it"):
        planner = DefaultSavePlanner(enable_plan_caching=True)
        writer = DirectWriter(directory / name)
        state_dict_saver.save(expected, storage_writer=writer, planner=planner, process_group=ranks.group)
        loaded = _blank(expected)
        state_dict_loader.load(loaded, storage_reader=DirectReader(directory / name), process_group=ranks.group)
        _compare(loaded, expected)


def save_asynchronously(ranks: Ranks, directory: Path, argument: str) -> None:
    """Save three times in the background, changing the state after each call."""
    expected = state(ranks, turned=False)
    for name in ("it", "other", "it"):
        working = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in expected.items()}
        future: Any = async_save(
            working,
            storage_writer=DirectWriter(directory / name),
            async_checkpointer_type=AsyncCheckpointerType[argument.upper()],
        )
        for value in working.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
        future.result()


WORK = {work.__name__: work for work in (save, load, fail, save_again, save_asynchronously)}


def serve(rank: int, store: Path) -> None:
    """Do a rank's work until there is no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    warnings.simplefilter("ignore")
    meeting: dict[str, Any] = {"init_method": f"file://{store}", "rank": rank, "world_size": MOST}
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # DCP's process asks for them
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S), **meeting)
    ranks_of = {count: Ranks.of(count) for count in range(1, MOST + 1)}
    while True:
        try:
            work, count, directory, argument = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        problem = ""
        try:
            if rank < count:
                WORK[work](ranks_of[count], directory, argument)
        except BaseException:  # noqa: BLE001  # the test reports it
            problem = f"rank {rank}: {traceback.format_exc()}"
        pickle.dump(problem, answers)
        answers.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
