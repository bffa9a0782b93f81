"""What every strategy must do where several ranks save and load together, whatever its format.

The ranks are threads that share a store, and processes for the strategies that need torch.distributed's process group,
which a process has one of: this file is also what those processes run.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from ckpt.disk import listing
from ckpt.errors import CheckpointError, MissingLibraryError
from ckpt.process_group.group import ProcessGroup
from ckpt.process_group.store_group import StoreGroup
from ckpt.registry import create, names
from ckpt.state.layout import State, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard, Sharding
from ckpt.strategies import tensorstore_ocdbt
from ckpt.strategy import Strategy

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "torch_save": [{"mmap": True}],
    "safetensors_direct": [{"block_mib": 1}, {"checksum": False}],
    "torch_dcp": [{"thread_count": 2, "single_file_per_rank": False}],
    "hdf5": [{"layout": "chunked", "chunk_mib": 1}],
    "orbax": [{"ocdbt": False, "compression": False}],
    "tensorstore_basic": [{"compressor": "none"}],
    "tensorstore_t5x_real": [{"dtype": "native"}],
    "tensorstore_tuned": [{"compression": "zstd", "crc32c": True, "plain_types": True}, {"shard_mib": 128}],
    "tensorstore_ocdbt": [{"target_file_mib": 2**20}],
    "zarr_python": [{"compression": "none"}],
}
"""The options that change what several ranks write, besides the defaults."""

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

CASES = [(name, options) for name in names() for options in [{}, *OPTIONS.get(name, [])]]
EVERY = pytest.mark.parametrize(("name", "options"), CASES, ids=[create(*case).label for case in CASES])

IN_PROCESSES = {"torch_dcp"}
"""It silences a warning while it works, and threads share what is silenced."""

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


Exact = list[tuple[str, str, tuple[int, ...], bytes]]


def exact(state: State) -> Exact:
    """Everything that must come back, in its order."""
    return [
        (
            name,
            str(tensor.dtype),
            tuple(tensor.shape),
            tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in state.items()
    ]


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

    def __call__(self, ranks: ProcessGroup) -> Exact:
        """Load, and tell everything."""
        part = RankShards(self.partition, (ranks.rank + self.shift) % ranks.size)
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
    store = dist.HashStore()
    with ThreadPoolExecutor(count) as pool:
        ranks = [StoreGroup(store, members(count), rank, TIMEOUT_S, "all") for rank in range(count)]
        return list(pool.map(partial(outcome, work), ranks))


class Processes:
    """As many processes as there may be ranks, each with a store of all; started when the first is needed."""

    def __init__(self) -> None:
        self._server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
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
            command = [sys.executable, __file__, str(len(self._started)), str(self._server.port)]
            self._started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for process in self._started[:count]:
            assert process.stdin is not None
            # A class of this file is another one there: that process has the file under another name.
            arguments = {field.name: getattr(work, field.name) for field in fields(work)}
            pickle.dump((type(work).__name__, arguments, count), process.stdin)
            process.stdin.flush()
        return [pickle.load(process.stdout) for process in self._started[:count] if process.stdout is not None]


def serve(rank: int, port: int) -> None:
    """What such a process does: one rank's work after the other, until there is no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    store.set_timeout(timedelta(seconds=TIMEOUT_S))
    turns: Counter[int] = Counter()
    while True:
        try:
            kind, arguments, count = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        work: Save | Load = {"Save": Save, "Load": Load}[kind](**arguments)
        turns[count] += 1
        name = f"turn {turns[count]} of {count}"  # the same for all that take part, and for nothing else
        ranks = StoreGroup(dist.PrefixStore(name, store), members(count), rank, TIMEOUT_S, name)
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


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Ranks that are processes."""
    with Processes() as started:
        yield started


@pytest.fixture
def strategy(name: str, options: dict[str, Any]) -> Iterator[Strategy]:
    """The strategy under test, with what it needs imported, and with small pieces."""
    found = create(name, options)
    try:
        found.prepare()
    except MissingLibraryError as error:
        if not error.optional or os.environ.get("CKPT_REQUIRE_ALL"):
            raise
        pytest.skip(str(error))
    with small_pieces(name):
        yield found


def in_processes(strategy: Strategy) -> bool:
    """Whether threads won't do as its ranks."""
    return strategy.capabilities.needs_process_group or strategy.name in IN_PROCESSES


@pytest.fixture
def run(strategy: Strategy, request: pytest.FixtureRequest) -> Run:
    """Let so many ranks do something at the same time; returns what each returned, or the error it ended with."""
    return request.getfixturevalue("processes") if in_processes(strategy) else in_threads


def saved_by(run: Run, strategy: Strategy, directory: Path, partition: Partition) -> list[list[str]]:
    """Save with all ranks into a new directory; returns the files of each."""
    directory.mkdir()
    files = run(Save(strategy, directory, partition), partition.count)
    for each in files:
        assert isinstance(each, list), repr(each)
    return files


def below(directory: Path) -> list[str]:
    """Every file below a directory."""
    return sorted(str(Path(entry.path).relative_to(directory)) for entry in listing.files_below(directory))


SCALES: list[tuple[Sharding, int]] = [
    ("dim0", 1), ("dim0", 2), ("dim0", 3), ("dim0", 4), ("tensors", 1), ("tensors", 3), ("replicated", 2),
]  # fmt: skip
AT_EVERY_SCALE = pytest.mark.parametrize(
    ("sharding", "count"), SCALES, ids=[f"{sharding}-{count}" for sharding, count in SCALES]
)


@EVERY
@AT_EVERY_SCALE
def test_round_trip(strategy: Strategy, run: Run, sharding: Sharding, count: int, tmp_path: Path) -> None:
    """Every file is told by the one rank that wrote it, no more files and bytes lie there than were planned, and each
    rank loads its own share, and another's, bit for bit.
    """
    partition = Partition.of(TENSORS, sharding, count)
    directory = tmp_path / "checkpoint"
    files = saved_by(run, strategy, directory, partition)
    assert below(directory) == sorted(file for each in files for file in each)
    planned, found = strategy.footprint(partition), listing.inventory(directory)
    assert planned.file_count >= found.file_count
    assert planned.size_bytes >= found.apparent_bytes
    for shift in {0, 1 % count}:
        load = Load(strategy, directory, partition, partition, shift)
        assert load.expected() == run(load, count)


@EVERY
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (4, 8), (3, 1), (1, 2)], ids=str)
def test_other_numbers_of_ranks(strategy: Strategy, run: Run, before: int, after: int, tmp_path: Path) -> None:
    """What some ranks saved others load, if the strategy says so; if it doesn't, it names itself and both numbers."""
    if in_processes(strategy) and after > 4:
        after = 4  # as many processes as there are
    directory = tmp_path / "checkpoint"
    saved = Partition.of(TENSORS, "dim0", before)
    saved_by(run, strategy, directory, saved)
    load = Load(strategy, directory, Partition.of(TENSORS, "dim0", after), saved)
    found = run(load, after)
    if strategy.capabilities.can_reshard or after == before:
        assert load.expected() == found
        return
    for error in found:
        assert isinstance(error, CheckpointError), repr(error)
        assert re.search(rf"strategy {re.escape(strategy.label)} .*\b{before} ranks.*\b{after}\b", str(error))


@EVERY
def test_whole_tensors_elsewhere(strategy: Strategy, run: Run, tmp_path: Path) -> None:
    """What ranks that hold everything saved, any number loads; and dealt tensors, where the strategy can reshard."""
    for sharding, before, after in (("replicated", 3, 2), ("tensors", 2, 3)):
        if sharding == "tensors" and not strategy.capabilities.can_reshard:
            continue
        directory = tmp_path / sharding
        saved = Partition.of(TENSORS, sharding, before)  # type: ignore[arg-type]
        saved_by(run, strategy, directory, saved)
        load = Load(strategy, directory, replace(saved, ranks=after, count=after), saved)
        assert load.expected() == run(load, after)


@EVERY
@pytest.mark.parametrize("sharding", ["dim0", "tensors"])
def test_a_node_by_itself(strategy: Strategy, run: Run, sharding: Sharding, tmp_path: Path) -> None:
    """The ranks of one node save what they hold, and load it, as a checkpoint of its own."""
    partition = Partition.of(TENSORS, sharding, 4).subset(2, 2)
    directory = tmp_path / "checkpoint"
    files = saved_by(run, strategy, directory, partition)
    assert below(directory) == sorted(file for each in files for file in each)
    planned, found = strategy.footprint(partition), listing.inventory(directory)
    assert planned.file_count >= found.file_count
    assert planned.size_bytes >= found.apparent_bytes
    load = Load(strategy, directory, partition, partition)
    assert load.expected() == run(load, 2)


@EVERY
@pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")  # orbax's
def test_a_lost_file(strategy: Strategy, run: Run, tmp_path: Path) -> None:
    """Without one of the largest files that a rank wrote, the load of its share ends with an error that says where;
    or the file wasn't needed, and nothing wrong is loaded: which can't be so of all.
    """
    partition = Partition.of(TENSORS, "dim0", 2)
    directory, aside = tmp_path / "checkpoint", tmp_path / "aside"
    _, files = saved_by(run, strategy, directory, partition)
    load = Load(strategy, directory, partition, partition)
    missed = 0
    for path in sorted((directory / file for file in files), key=lambda path: path.stat().st_size)[-5:]:
        path.rename(aside)
        found = run(load, 2)[1]
        if isinstance(found, CheckpointError):
            missed += 1
            assert str(directory) in str(found)
        else:
            assert load.expected()[1] == found
        aside.rename(path)
    assert missed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {})
        for name in (
            "tensorstore_basic",
            "tensorstore_t5x_real",
            "tensorstore_tuned",
            "tensorstore_ocdbt",
            "zarr_python",
        )
    ],
    ids=lambda value: value or "",
)
def test_one_array_by_several_processes(strategy: Strategy, processes: Processes, tmp_path: Path) -> None:
    """Processes write their chunks of one array at the same time, and none is in another's way."""
    partition = Partition.of(TENSORS, "dim0", 3)
    for number in range(3):
        directory = tmp_path / str(number)
        saved_by(processes, strategy, directory, partition)
        load = Load(strategy, directory, partition, partition)
        assert load.expected() == processes(load, 3)


@pytest.mark.parametrize(("name", "options"), [("orbax", {}), ("torch_checkpointing", {})], ids=["orbax", "torch"])
def test_directories_of_several_processes(strategy: Strategy, tmp_path: Path) -> None:
    """A library that knows of other ranks in its own way only works in several processes beside each other.

    In new ones, as a job's are: torch_checkpointing names its files after a process group's ranks where there is one.
    """
    partition = Partition.of(TENSORS, "dim0", 3)
    directory = tmp_path / "checkpoint"
    with Processes() as started:
        saved_by(started, strategy, directory, partition)
        load = Load(strategy, directory, partition, partition, 1)
        assert load.expected() == started(load, 3)


@EVERY
def test_planning_is_fast(strategy: Strategy) -> None:
    """512 ranks of the largest model's tensors are no more work than a few: each tensor is looked at a few times."""
    layers = [TensorLayout(f"layers.{number}.weight", (16384, 16384), "bfloat16") for number in range(500)]
    partition = Partition.of((*layers, TensorLayout("step", (), "int64")), "dim0", 512)
    looked_at = 0
    rows = Partition._rows

    def count(*arguments: Any) -> tuple[int, int]:
        nonlocal looked_at
        looked_at += 1
        return rows(*arguments)

    with mock.patch.object(Partition, "_rows", count):
        planned = strategy.footprint(partition)
    assert planned.size_bytes >= sum(tensor.size_bytes for tensor in partition.tensors)
    assert looked_at <= 20 * len(partition.tensors)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
