"""How long a training thread waits for the interpreter's lock while a checkpoint is saved behind it.

    python tests/benchmarks/interpreter_lock.py DIRECTORY [--gb 1] [--rounds 8] [--strategies torch_save,hdf5]

The training thread has a core to itself, and counts in Python. What a piece of that takes longer by the clock than on
its core, it waited: for the lock, or for another program that the system let run there. The save has the other cores.
`dtensors` among the strategies is a state with DTensors, of one rank.
Each round saves once in every way, in a random order, and counts as long without a save. A row has the share of the
time between the return of `save` and the commit: the median of the rounds, with their range.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckpt.checkpointer import Checkpointer

DTENSORS = "dtensors"

_PIECE = 2000
"""Turns of a loop, about a tenth of a millisecond."""


def main() -> None:
    """Save in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gb", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--strategies", default=f"safetensors_tuned,torch_save,{DTENSORS}")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this needs two cores: one for the training thread, and one for the save")
    state = {f"w{number}": torch.randn(1 << 22) for number in range(max(1, round(arguments.gb * 1e9 / (4 << 22))))}
    ways = [(name, way) for name in arguments.strategies.split(",") for way in ("process", "thread")]
    states = {name: _sharded(state) if name == DTENSORS else state for name, _ in ways}
    shares: dict[tuple[str, str], list[float]] = {("none", ""): []}
    for step in range(1, arguments.rounds + 1):
        for name, way in random.sample(ways, len(ways)):
            os.sched_setaffinity(0, cores[1:])  # for the threads that the save starts
            options = {} if name == DTENSORS else {"strategy": name}
            with Checkpointer(arguments.directory / f"{name}-{way}", background=way, keep=1, **options) as saves:
                saves.warm(states[name])
                saves.save(step, states[name])
                os.sched_setaffinity(0, cores[:1])
                running = (saves._saves_together if name == DTENSORS else saves._saves)._running
                assert running is not None
                waited_s, counted_s = _count(until=running[1].done)
                shares.setdefault((name, way), []).append(waited_s / counted_s)
            over = threading.Event()
            threading.Timer(counted_s, over.set).start()
            waited_s, counted_s = _count(until=over.is_set)
            shares["none", ""].append(waited_s / counted_s)
    for (name, way), values in shares.items():
        print(
            f"{name:20} {way:8} waited {statistics.median(values):7.2%} of the time "
            f"({min(values):.2%} to {max(values):.2%})"
        )


def _sharded(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Make DTensors of tensors, in a process group of one rank."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    return {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in state.items()}


def _count(until: Callable[[], bool]) -> tuple[float, float]:
    """Count in Python until something has happened; returns how long the thread waited, and how long that took."""
    start_s, start_cpu_s = time.perf_counter(), time.thread_time()
    while not until():
        for _ in range(_PIECE):
            pass
    counted_s = time.perf_counter() - start_s
    return counted_s - (time.thread_time() - start_cpu_s), counted_s


if __name__ == "__main__":
    main()
