"""Ranks that save and load together: threads that share a store, or processes, which `python -m support.ranks` serves.

Processes are for strategies that need torch.distributed's process group, which a process has one of.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]  # it has no __all__

from ckpt.process_group.group import ProcessGroup
from ckpt.process_group.store_group import StoreGroup
from ckpt.state.layout import State, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategies import tensorstore_ocdbt
from ckpt.strategy import Strategy
from ckpt.testing.states import Exact, exact

SMALL: dict[str, tuple[tuple[str, Any], ...]] = {
    "hdf5": (("MIB", 60),),
    "tensorstore_basic": (("_LARGEST_SIDE", 3),),
    "tensorstore_t5x": (("_TARGET_CHUNK_BYTES", 60),),
    "tensorstore_t5x_real": (("_TARGET_CHUNK_BYTES", 60),),
    "tensorstore_tuned": (("MIB", 1),),
    "tensorstore_ocdbt": (("MIB", 1), ("_CONFIG", {**tensorstore_ocdbt._CONFIG, "max_inline_value_bytes": 10})),
    "zarr_python": (("MIB", 1),),
}
"""Constants of the modules, made so small that the tests' tensors have several chunks."""

TIMEOUT_S = 60

TENSORS = (
    TensorLayout("", (12, 6), "float16"),
    TensorLayout("layers.0/weight", (16, 10), "float32"),
    TensorLayout("layers.0/bias", (5,), "float32"),
    TensorLayout("layers.1.weight", (5, 3), "bfloat16"),
    TensorLayout("layers.1.scale", (9, 2), "float8_e4m3fn"),
    TensorLayout("layers.2.scale", (8, 1), "float8_e5m2"),
    TensorLayout("step", (), "int64"),
    TensorLayout("empty", (0, 7), "float32"),
    TensorLayout("no columns", (3, 0), "float32"),
    TensorLayout("mask", (7, 2), "bool"),
    TensorLayout("spectrum", (4,), "complex64"),
    TensorLayout("one row", (1, 3), "uint8"),
    TensorLayout("one NaN", (8, 2), "float16"),
    TensorLayout("cube", (6, 2, 2), "bfloat16"),
    TensorLayout("head", (12, 6), "float16", same_as=""),
)


@cache
def whole() -> State:
    """Values for the tensors, no two alike."""
    random = torch.Generator().manual_seed(3)
    state: State = {}
    for tensor in TENSORS:
        values = torch.randn(tensor.shape, generator=random) * 20
        state[tensor.name] = values.round().clamp(0, 1) if tensor.dtype == "bool" else values
        state[tensor.name] = state[tensor.name].to(getattr(torch, tensor.dtype))
    state["one NaN"].view(torch.int16)[6, 1] = 0x7C01  # with bits that a cast would change, and on one rank only
    state["head"] = state[""]
    return state


def share_of(partition: Partition, share: tuple[Shard, ...]) -> State:
    """The part of the values that a rank holds: tied tensors are the same memory."""
    state: State = {}
    for each in share:
        values = whole()[each.whole.name]
        if values.ndim:
            before = 0
            if partition.sharding == "dim0":  # a window counts its rows from its own first
                before = min(partition.first * -(-values.shape[0] // partition.ranks), values.shape[0])
            values = values[before + each.start : before + each.stop]
        state[each.whole.name] = values if each.whole.same_as is None else state[each.whole.same_as]
    return state


@dataclass(frozen=True)
class Save:
    """What each rank does to save its part of a partition."""

    strategy: Strategy
    directory: Path
    partition: Partition

    def __call__(self, ranks: ProcessGroup) -> list[str]:
        """Save, and tell the files."""
        part = RankShards(self.partition, ranks.rank)
        state = share_of(self.partition, part.owned)
        before = exact(state)
        files = self.strategy.write(state, self.directory, part, ranks)
        assert before == exact(state)
        return [str(file.relative_to(self.directory)) for file in files]


@dataclass(frozen=True)
class Load:
    """What each rank does to load a part: that of so many ranks after its own."""

    strategy: Strategy
    directory: Path
    partition: Partition
    saved: Partition
    shift: int = 0
    in_place: bool = False

    def __call__(self, ranks: ProcessGroup) -> Exact:
        """Load, and tell everything."""
        part = RankShards(self.partition, (ranks.rank + self.shift) % ranks.size)
        if self.in_place:
            targets = {
                shard.whole.name: torch.full(shard.layout.shape, 1, dtype=getattr(torch, shard.whole.dtype))
                for shard in part.held
                if shard.whole.same_as is None
            }
            self.strategy.fill(self.directory, targets, part.wanted, self.saved, ranks)
            return exact({shard.whole.name: targets[shard.whole.owner] for shard in part.held})
        return exact(self.strategy.read(self.directory, part.wanted, self.saved, ranks))

    def expected(self) -> list[Exact]:
        """What the ranks must load."""
        count = self.partition.count
        wanted = [self.partition.held((rank + self.shift) % count) for rank in range(count)]
        return [exact(share_of(self.partition, share)) for share in wanted]


Work = Save | Load
Run = Callable[[Work, int], list[Any]]


def outcome(work: Work, ranks: StoreGroup) -> Any:
    """What a rank's work returned, or the error it ended with, which the others are told."""
    try:
        if work.strategy.capabilities.needs_process_group and ranks.size > 1:
            ranks.init_torch_distributed()
        return work(ranks)
    except Exception as error:  # noqa: BLE001  # every test says which it expects
        ranks.fail(f"{type(error).__name__}: {error}")
        return error


def members(count: int) -> list[tuple[int, str]]:
    """The ranks' places and names."""
    return [(rank, f"host-{rank}") for rank in range(count)]


def in_threads(work: Work, count: int) -> list[Any]:
    """Let each rank do it in a thread."""
    store = HashStore()
    with ThreadPoolExecutor(count) as pool:
        ranks = [StoreGroup(store, members(count), rank, TIMEOUT_S, "all") for rank in range(count)]
        return list(pool.map(partial(outcome, work), ranks))


class Processes:
    """As many processes as there may be ranks, each with a store of all; started when the first is needed."""

    def __init__(self) -> None:
        self._server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._started:
            process.wait(TIMEOUT_S)
            assert process.stdout is not None
            process.stdout.close()

    def __call__(self, work: Work, count: int) -> list[Any]:
        """Let each rank do it in a process of its own."""
        while len(self._started) < count:
            command = [sys.executable, "-m", __name__, str(len(self._started)), str(self._server.port)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._started.append(process)
        for process in self._started[:count]:
            assert process.stdin is not None
            pickle.dump((work, count), process.stdin)
            process.stdin.flush()
        return [pickle.load(process.stdout) for process in self._started[:count] if process.stdout is not None]


def serve(rank: int, port: int) -> None:
    """What such a process does: one rank's work after the other, until there is no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    store = TCPStore("127.0.0.1", port, is_master=False)
    store.set_timeout(timedelta(seconds=TIMEOUT_S))
    turns: Counter[int] = Counter()
    while True:
        try:
            work, count = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        turns[count] += 1
        name = f"turn {turns[count]} of {count}"  # the same for all that take part, and for nothing else
        ranks = StoreGroup(PrefixStore(name, store), members(count), rank, TIMEOUT_S, name)
        with small_pieces(work.strategy.name):
            work.strategy.prepare()
            pickle.dump(outcome(work, ranks), answers)
        answers.flush()


@contextmanager
def small_pieces(name: str) -> Iterator[None]:
    """Make a strategy's chunks and files small."""
    with ExitStack() as patches:
        for constant, value in SMALL.get(name, ()):
            patches.enter_context(mock.patch(f"ckpt.strategies.{name}.{constant}", value))
        yield


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
