"""What every strategy must do where several ranks save and load together, whatever its format."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.registry import create, names
from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, Sharding
from ckpt.strategy import Strategy
from support.ranks import TENSORS, Load, Processes, Run, Save, in_threads, small_pieces
from support.strategies import usable

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "torch_save": [{"mmap": True}],
    "safetensors_tuned": [{"block_mib": 1}, {"checksum": False}],
    "torch_dcp": [{"thread_count": 2, "single_file_per_rank": False}],
    "torch_dcp_direct": [{"files": 2, "verify": True}],
    "hdf5": [{"layout": "chunked", "chunk_mib": 1}],
    "orbax": [{"ocdbt": False, "compression": False}],
    "tensorstore_basic": [{"compressor": "none"}],
    "tensorstore_t5x_real": [{"dtype": "native"}],
    "tensorstore_tuned": [{"compression": "zstd", "crc32c": True, "plain_types": True}, {"shard_mib": 128}],
    "tensorstore_ocdbt": [{"target_file_mib": 2**20}],
    "zarr_python": [{"compression": "none"}],
}
"""The options that change what several ranks write, besides the defaults."""

CASES = [(name, options) for name in names() for options in [{}, *OPTIONS.get(name, [])]]
EVERY = pytest.mark.parametrize(("name", "options"), CASES, ids=[create(*case).label for case in CASES])

IN_PROCESSES = {"torch_dcp", "torch_dcp_direct"}
"""They silence a warning while they work, and threads share what is silenced."""


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Ranks that are processes."""
    with Processes() as started:
        yield started


@pytest.fixture
def strategy(name: str, options: dict[str, Any]) -> Iterator[Strategy]:
    """The strategy under test, with what it needs imported, and with small pieces."""
    with small_pieces(name):
        yield usable(name, options)


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
        for in_place in {False, strategy.capabilities.loads_in_place}:
            load = Load(strategy, directory, partition, partition, shift, in_place)
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
    for in_place in {False, strategy.capabilities.loads_in_place}:
        load = Load(strategy, directory, Partition.of(TENSORS, "dim0", after), saved, in_place=in_place)
        found = run(load, after)
        if strategy.capabilities.can_reshard or after == before:
            assert load.expected() == found
            continue
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


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python the work runs, those of libraries included."""
    count = 0

    def trace(_: FrameType, event: str, __: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@EVERY
def test_planning_is_fast(strategy: Strategy) -> None:
    """To plan 512 ranks with the largest model's tensors is hardly more work than to plan eight."""
    layers = [TensorLayout(f"layers.{number}.weight", (16384, 16384), "bfloat16") for number in range(500)]
    few, many = (Partition.of((*layers, TensorLayout("step", (), "int64")), "dim0", ranks) for ranks in (8, 512))
    assert strategy.footprint(many).size_bytes >= sum(tensor.size_bytes for tensor in many.tensors)
    assert lines_run(lambda: strategy.footprint(many)) <= 2 * lines_run(lambda: strategy.footprint(few))
