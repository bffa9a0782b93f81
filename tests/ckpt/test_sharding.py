"""Who holds what of a state that many ranks share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard, Sharding, rows_of, tensors_of

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Up to eight tensors of any dimensions, some without elements, some tied to an earlier one."""
    found: list[TensorLayout] = []
    for number in range(draw(st.integers(0, 8))):
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 13, 40]), max_size=3)))
        name = f"tensor {number}" if number else ""
        tensor = TensorLayout(name, shape, draw(st.sampled_from(["uint8", "bfloat16", "float32"])))
        owners = [each for each in found if each.same_as is None]
        tied_to = draw(st.integers(0, 12))
        if tied_to < len(owners):
            tensor = replace(owners[tied_to], name=name, same_as=owners[tied_to].name)
        found.append(tensor)
    return tuple(found)


@st.composite
def partitions(draw: st.DrawFn, shardings: tuple[Sharding, ...] = SHARDINGS) -> Partition:
    """A state among up to 17 ranks, or what some of them have of it."""
    ranks = draw(st.integers(1, 17))
    partition = Partition.of(draw(layouts()), draw(st.sampled_from(shardings)), ranks)
    if draw(st.booleans()):
        first = draw(st.integers(0, ranks - 1))
        return partition.subset(first, draw(st.integers(1, ranks - first)))
    return partition


def writes(partition: Partition) -> list[tuple[Shard, ...]]:
    """What each rank has to save."""
    return [partition.owned(rank) for rank in range(partition.count)]


@given(partitions())
def test_everything_is_saved_once(partition: Partition) -> None:
    """Every row is saved by one rank, in the order of the ranks, and by nobody else; and so is a tensor without any."""
    for tensor in partition.layout:
        slices = [each for share in writes(partition) for each in share if each.whole == tensor]
        rows = [row for each in slices for row in range(each.start, each.stop)]
        assert list(range(rows_of(tensor))) == rows
        assert all(each.stop > each.start for each in slices) or len(slices) == 1
        assert len(slices) >= 1


@given(partitions())
def test_order(partition: Partition) -> None:
    """The state's order is each share's, and that of what the ranks have together."""
    names = [tensor.name for tensor in partition.tensors]
    for share in [*writes(partition), *(RankShards(partition, rank).held for rank in range(partition.count))]:
        found = [each.whole.name for each in share]
        assert [name for name in names if name in found] == found
    together = [tensor.name for tensor in partition.layout]
    assert [name for name in names if name in together] == together


@given(layouts(), st.sampled_from(SHARDINGS), st.integers(1, 17))
def test_all_ranks_have_the_whole(tensors: Layout, sharding: Sharding, ranks: int) -> None:
    """What all ranks hold together is the state."""
    assert tensors == Partition.of(tensors, sharding, ranks).layout


@given(layouts(), st.sampled_from(["dim0", "tensors"]), st.integers(1, 17), st.data())
def test_windows(tensors: Layout, sharding: Sharding, ranks: int, data: st.DataObject) -> None:
    """Ranks that are looked at by themselves hold what they hold among all, each tensor beginning with their rows."""
    partition = Partition.of(tensors, sharding, ranks)
    first = data.draw(st.integers(0, ranks - 1))
    count = data.draw(st.integers(1, ranks - first))
    window = partition.subset(first, count)
    assert count == window.count == len(writes(window))
    for rank in range(count):
        among_all, alone = partition.owned(first + rank), window.owned(rank)
        assert tensors_of(among_all) == tensors_of(alone)
        begins = {each.whole.name: each.start for share in reversed(writes(partition)[first:]) for each in share}
        assert [each.start - begins[each.whole.name] for each in among_all] == [each.start for each in alone]
    inner = data.draw(st.integers(0, count - 1))
    assert partition.subset(first + inner, 1) == window.subset(inner, 1)


@given(layouts(), st.integers(1, 17), st.data())
def test_windows_of_a_replicated_state(tensors: Layout, ranks: int, data: st.DataObject) -> None:
    """Each node has everything, and its ranks divide the work among themselves."""
    count = data.draw(st.integers(1, ranks))
    window = Partition.of(tensors, "replicated", ranks).subset(ranks - count, count)
    assert Partition.of(tensors, "replicated", count) == window


@given(partitions())
def test_steps(partition: Partition) -> None:
    """Every boundary between ranks is a multiple of the step, which is the whole tensor's rows where it isn't cut."""
    for share in writes(partition):
        for each in share:
            step = partition.rows_per_rank(each.whole)
            assert step >= 1
            assert each.start % step == 0
            assert each.stop % step == 0 or each.stop == rows_of(each.whole)
            assert not each.is_whole or step >= rows_of(each.whole)


@given(partitions())
def test_alike(partition: Partition) -> None:
    """What is planned for a few kinds of ranks is what all of them save."""
    kinds: Counter[Layout] = Counter()
    for layout, count in partition.unique_shards():
        kinds[layout] += count
    assert Counter(tensors_of(share) for share in writes(partition)) == kinds


def test_few_kinds() -> None:
    """However many ranks there are, a state of a few shapes has a few kinds of shares."""
    tensors = tuple(TensorLayout(f"{number}", (16384, 53248), "float32") for number in range(100))
    kinds = list(Partition.of((*tensors, TensorLayout("step", (), "int64")), "dim0", 512).unique_shards())
    assert len(kinds) <= 3
    assert sum(count for _, count in kinds) == 512


@given(layouts(), st.sampled_from(["tensors", "replicated"]), st.integers(1, 17))
def test_dealing_is_balanced(tensors: Layout, sharding: Sharding, ranks: int) -> None:
    """The rank with most has no more than the one with least, and the largest tensor."""
    shares = writes(Partition.of(tensors, sharding, ranks))
    piles = [sum(each.whole.size_bytes for each in share if each.whole.same_as is None) for share in shares]
    assert max(piles) - min(piles) <= max((tensor.size_bytes for tensor in tensors), default=0)


@given(partitions())
def test_tied_tensors(partition: Partition) -> None:
    """Who has a tensor has those that share its memory, and the same rows of them."""
    for share in writes(partition):
        rows = {each.whole.name: (each.start, each.stop) for each in share}
        for each in share:
            assert rows[each.whole.name] == rows[each.whole.owner]


@given(st.integers(1, 60), st.integers(1, 20))
def test_dim0_cuts_as_torch_does(rows: int, ranks: int) -> None:
    """The shards are torch.chunk's, which FSDP uses; the ranks after the last shard have nothing."""
    partition = Partition.of((TensorLayout("weight", (rows, 2), "float32"),), "dim0", ranks)
    chunks = [len(chunk) for chunk in torch.chunk(torch.empty(rows, 2), ranks)]
    found = [[each.stop - each.start for each in share] for share in writes(partition)]
    assert [[chunk] for chunk in chunks] + [[]] * (ranks - len(chunks)) == found


@given(partitions())
def test_what_is_held(partition: Partition) -> None:
    """A replicated state is everywhere; of others a rank holds what it saves."""
    for rank in range(partition.count):
        held = RankShards(partition, rank).held
        if partition.sharding == "replicated":
            assert [Shard(tensor, 0, rows_of(tensor)) for tensor in partition.layout] == list(held)
        else:
            assert partition.owned(rank) == held


@pytest.mark.parametrize(
    ("shape", "start", "stop", "expected"),
    [((5, 3), 2, 4, (2, 3)), ((5,), 4, 5, (1,)), ((), 0, 1, ()), ((0, 7), 0, 0, (0, 7))],
)
def test_layout_of_a_slice(shape: tuple[int, ...], start: int, stop: int, expected: tuple[int, ...]) -> None:
    """A slice is a tensor of its own, under the same name; one without a dimension is all there is."""
    tensor = TensorLayout("weight", shape, "int8", same_as="other")
    assert replace(tensor, shape=expected) == Shard(tensor, start, stop).layout
