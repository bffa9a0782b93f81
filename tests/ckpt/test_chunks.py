"""Arrays that several ranks write: chunks that agree with who holds which rows."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ckpt.disk import listing
from ckpt.formats.chunks import chunk_count, chunk_indices, chunk_shape, for_ranks, nearest_divisor, shard_shape
from ckpt.process_group.group import SingleProcess
from ckpt.process_group.store_group import StoreGroup
from ckpt.registry import create
from ckpt.state.layout import State, TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategies.tensorstore_tuned import TensorstoreTuned
from ckpt.strategy import Strategy
from support.groups import UnaskedGroup

ARRAYS = pytest.mark.parametrize(
    "name", ["tensorstore_basic", "tensorstore_t5x", "tensorstore_t5x_real", "tensorstore_tuned", "zarr_python"]
)
"""The strategies with an array, and a file for each chunk, in the directory."""


@pytest.mark.parametrize(
    ("number", "wanted", "expected"),
    [
        (32, 8, 8),
        (32, 7, 8),
        (32, 5, 4),
        (12, 5, 6),  # 6/5 is nearer to 1 than 5/4
        (67, 10, 67),
        (67, 8, 1),
        (251, 1, 1),
        (251, 250, 251),
        (1, 1, 1),
        (6, 100, 6),
    ],
)
def test_nearest_divisor(number: int, wanted: int, expected: int) -> None:
    """The divisor whose ratio to what is wanted is nearest to 1, above it or below."""
    assert expected == nearest_divisor(number, wanted)


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_no_divisor_is_nearer(number: int, wanted: int) -> None:
    """No other divisor has a ratio nearer to 1."""
    found = nearest_divisor(number, wanted)
    assert number % found == 0
    ratios = [max(part / wanted, wanted / part) for part in range(1, number + 1) if number % part == 0]
    assert math.isclose(min(ratios), max(found / wanted, wanted / found))


@given(
    st.lists(st.integers(0, 40), max_size=3).map(tuple),
    st.integers(1, 20),
    st.integers(1, 5000),
)
def test_no_chunk_has_two_writers(shape: tuple[int, ...], ranks: int, most_bytes: int) -> None:
    """The chunks of all ranks are the array's, and no chunk is two ranks'."""
    partition = Partition.of((TensorLayout("w", shape, "uint8"),), "dim0", ranks)
    (tensor,) = partition.layout
    chunk = for_ranks(lambda shape: chunk_shape(shape, 1, most_bytes), tensor, partition)
    found = [place for rank in range(ranks) for each in partition.owned(rank) for place in chunk_indices(each, chunk)]
    assert len(set(found)) == len(found) == chunk_count(shape, chunk)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple), st.integers(1, 20), st.integers(1, 5000))
def test_shards_have_whole_chunks(shape: tuple[int, ...], ranks: int, chunks: int) -> None:
    """A shard is some chunks, and the rows between two ranks' boundaries are some shards."""
    partition = Partition.of((TensorLayout("w", shape, "uint8"),), "dim0", ranks)
    strategy = TensorstoreTuned(chunk_mib=1, shard_mib=chunks)
    (tensor,) = partition.layout
    chunk, shard = strategy._shapes(tensor, partition)
    assert [0] * len(shape) == [whole % part for whole, part in zip(shard, chunk, strict=True)]
    if partition.rows_per_rank(tensor) < shape[0]:
        assert partition.rows_per_rank(tensor) % shard[0] == 0


def test_shards() -> None:
    """A shard has chunks along the dimension that is split, and one at least."""
    assert [8, 10] == shard_shape((16, 10), [2, 10], 4, 8 * 10 * 4)
    assert [16, 10] == shard_shape((16, 10), [2, 10], 4, 10**6)
    assert [2, 10] == shard_shape((16, 10), [2, 10], 4, 0)
    assert [1, 6] == shard_shape((1, 10), [1, 2], 1, 6)


@pytest.mark.parametrize(
    ("each", "chunk", "expected"),
    [
        (Shard(TensorLayout("w", (), "uint8"), 0, 1), [], [()]),
        (Shard(TensorLayout("w", (0, 7), "uint8"), 0, 0), [1, 7], []),
        (Shard(TensorLayout("w", (3, 0), "uint8"), 0, 3), [3, 1], []),
        (Shard(TensorLayout("w", (10, 3), "uint8"), 4, 10), [4, 2], [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]),
    ],
)
def test_chunk_indices(each: Shard, chunk: list[int], expected: list[tuple[str, ...]]) -> None:
    """The chunks of some rows, by their numbers along each dimension."""
    assert expected == list(chunk_indices(each, chunk))


def test_a_single_process() -> None:
    """A single process owns everything, in the state's order, and knows what is tied."""
    weight = torch.ones(2, 3)
    state = {"b": weight, "a": torch.zeros((), dtype=torch.bfloat16), "tied": weight}
    part = RankShards.single(layout_of_state(state))
    expected = (
        TensorLayout("b", (2, 3), "float32"),
        TensorLayout("a", (), "bfloat16"),
        TensorLayout("tied", (2, 3), "float32", "b"),
    )
    assert expected == part.partition.layout
    assert [Shard(tensor, 0, tensor.shape[0] if tensor.shape else 1) for tensor in expected] == list(part.owned)


LAYOUT = (
    TensorLayout("weight", (600, 70), "float32"),
    TensorLayout("bias", (5,), "int64"),
    TensorLayout("step", (), "int64"),
)


def values() -> State:
    """Values for that."""
    return {tensor.name: torch.arange(tensor.elements).reshape(tensor.shape).float() for tensor in LAYOUT} | {
        tensor.name: torch.arange(tensor.elements).reshape(tensor.shape) for tensor in LAYOUT[1:]
    }


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file below, and what is in it."""
    found = [Path(entry.path) for entry in listing.files_below(directory)]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def strategy_of(name: str) -> Strategy:
    """A strategy whose library is there."""
    for module in create(name).requires:
        pytest.importorskip(module)
    return create(name)


@ARRAYS
def test_one_rank_writes_what_one_process_writes(name: str, tmp_path: Path) -> None:
    """A rank without others, however its state is partitioned, writes the same files as a single process."""
    strategy = strategy_of(name)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    strategy.save(values(), first)
    part = RankShards(Partition.of(LAYOUT, "dim0", 1), 0)
    files = strategy.write(values(), second, part, SingleProcess())
    assert files_in(first) == files_in(second)
    assert sorted(files_in(second)) == sorted(str(file.relative_to(second)) for file in files)
    assert strategy.footprint(Partition.single(LAYOUT)) == strategy.footprint(part.partition)


@ARRAYS
def test_no_rank_waits(name: str, tmp_path: Path) -> None:
    """The last rank may be the first to write: nobody needs what another has to write, and the files are as planned."""
    strategy = strategy_of(name)
    partition = Partition.of(LAYOUT, "dim0", 4)
    state = values()
    for rank in reversed(range(4)):
        part = RankShards(partition, rank)
        share = {each.whole.name: state[each.whole.name] for each in part.owned}
        for each in part.owned:
            if each.whole.shape:
                share[each.whole.name] = state[each.whole.name][each.start : each.stop]
        strategy.write(share, tmp_path, part, UnaskedGroup(rank, 4))
    loaded = strategy.load(tmp_path)
    assert list(state) == list(loaded)
    assert all(torch.equal(state[tensor], loaded[tensor]) for tensor in state)
    assert strategy.footprint(partition).file_count == listing.inventory(tmp_path).file_count


@pytest.mark.parametrize(("nan_on", "stored"), [(None, "<f4"), (0, "<f2"), (1, "<f2"), (2, "<f2")])
def test_a_nan_on_one_rank(nan_on: int | None, stored: str, tmp_path: Path) -> None:
    """A tensor with a NaN isn't upcast, whichever rank has it: the ranks agree about it, and about no other tensor."""
    strategy = create("tensorstore_t5x")
    layout = (TensorLayout("w", (6, 2), "float16"), TensorLayout("v", (6, 2), "float16"))
    state = {"w": torch.arange(12).reshape(6, 2).half(), "v": torch.ones(6, 2).half()}
    if nan_on is not None:
        state["w"][2 * nan_on, 1] = float("nan")
    partition = Partition.of(layout, "dim0", 3)
    store = dist.HashStore()

    def save(rank: int) -> None:
        part = RankShards(partition, rank)
        share = {each.whole.name: state[each.whole.name][each.start : each.stop] for each in part.owned}
        ranks = StoreGroup(store, [(each, "host") for each in range(3)], rank, 60, "all")
        strategy.write(share, tmp_path, part, ranks)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, range(3)))
    assert stored == json.loads((tmp_path / "w.zarr" / ".zarray").read_text())["dtype"]
    assert json.loads((tmp_path / "v.zarr" / ".zarray").read_text())["dtype"] == "<f4"
    loaded = strategy.load(tmp_path)
    assert torch.equal(state["w"].view(torch.int16), loaded["w"].view(torch.int16))


def test_a_long_row_is_divided_at_once() -> None:
    """The parts of a flat tensor are found from its divisors: trying every size would take minutes, or days."""
    assert chunk_shape((10**14,), 1, 2**40) == [10**12]
    assert chunk_shape((999_999_999_989,), 1, 2**39) == [499_999_999_995]
