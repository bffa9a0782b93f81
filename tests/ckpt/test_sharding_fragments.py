"""Where a share's rows lie among what other ranks saved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, Sharding

shapes = st.lists(st.sampled_from([(), (0, 3), (1,), (2, 0), (5,), (7, 2), (16,), (33, 1)]), max_size=6)
shardings: st.SearchStrategy[Sharding] = st.sampled_from(["dim0", "tensors", "replicated"])
ranks = st.integers(1, 9)


@given(shapes, shardings, ranks, ranks, st.data())
def test_pieces(
    tensors: list[tuple[int, ...]], sharding: Sharding, saved: int, loaded: int, data: st.DataObject
) -> None:
    """Every wanted row lies in one fragment, within a stored shard, and the fragments are in the rows' order."""
    layout = tuple(TensorLayout(str(number), shape, "int8") for number, shape in enumerate(tensors))
    first = data.draw(st.integers(0, saved - 1))
    writers = Partition.of(layout, sharding, saved).subset(first, data.draw(st.integers(1, saved - first)))
    readers = Partition.of(writers.layout, sharding, loaded)
    for rank in range(loaded):
        share = readers.held(rank)
        rows: dict[str, list[int]] = {each.whole.name: [] for each in share}
        for writer, fragments in writers.fragments(share).items():
            written = writers.owned(writer)
            for fragment in fragments:
                assert fragment.saved in written
                assert fragment.saved.start <= fragment.wanted.start <= fragment.wanted.stop <= fragment.saved.stop
                assert fragment.is_all == (fragment.rows == slice(0, fragment.saved.stop - fragment.saved.start))
                rows[fragment.wanted.whole.name] += range(fragment.wanted.start, fragment.wanted.stop)
        assert {each.whole.name: [*range(each.start, each.stop)] for each in share} == rows


def test_tied_tensors_lie_with_their_owner() -> None:
    """What shares another's memory was saved with it: nobody looks for it."""
    owner, tied = TensorLayout("a", (6,), "int8"), TensorLayout("b", (6,), "int8", "a")
    partition = Partition.of((owner, tied), "dim0", 3)
    assert {1: ["a"]} == {
        rank: [fragment.wanted.whole.name for fragment in fragments]
        for rank, fragments in partition.fragments(partition.held(1)).items()
    }
