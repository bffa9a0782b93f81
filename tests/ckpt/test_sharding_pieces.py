"""Where a share's rows lie among what other ranks saved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Division, Sharding

shapes = st.lists(st.sampled_from([(), (0, 3), (1,), (2, 0), (5,), (7, 2), (16,), (33, 1)]), max_size=6)
shardings: st.SearchStrategy[Sharding] = st.sampled_from(["dim0", "tensors", "replicated"])
ranks = st.integers(1, 9)


@given(shapes, shardings, ranks, ranks, st.data())
def test_pieces(
    tensors: list[tuple[int, ...]], sharding: Sharding, saved: int, loaded: int, data: st.DataObject
) -> None:
    """Every row that is wanted lies in one piece, in what its rank saved, and the pieces are in the rows' order."""
    layout = tuple(TensorLayout(str(number), shape, "int8") for number, shape in enumerate(tensors))
    first = data.draw(st.integers(0, saved - 1))
    writers = Division.of(layout, sharding, saved).window(first, data.draw(st.integers(1, saved - first)))
    readers = Division.of(writers.layout, sharding, loaded)
    for rank in range(loaded):
        share = readers.holds(rank)
        rows: dict[str, list[int]] = {each.whole.name: [] for each in share}
        for writer, pieces in writers.pieces(share).items():
            written = writers.writes(writer)
            for piece in pieces:
                assert piece.saved in written
                assert piece.saved.start <= piece.wanted.start <= piece.wanted.stop <= piece.saved.stop
                assert piece.is_all == (piece.rows == slice(0, piece.saved.stop - piece.saved.start))
                rows[piece.wanted.whole.name] += range(piece.wanted.start, piece.wanted.stop)
        assert {each.whole.name: [*range(each.start, each.stop)] for each in share} == rows


def test_tied_tensors_lie_with_their_owner() -> None:
    """What shares another's memory was saved with it: nobody looks for it."""
    owner, tied = TensorLayout("a", (6,), "int8"), TensorLayout("b", (6,), "int8", "a")
    division = Division.of((owner, tied), "dim0", 3)
    assert {1: ["a"]} == {
        rank: [piece.wanted.whole.name for piece in pieces]
        for rank, pieces in division.pieces(division.holds(1)).items()
    }
