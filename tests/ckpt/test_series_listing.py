"""What the nodes of a job have of a step between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.process_group.nodes import Nodes
from ckpt.series import listing

DIRECTORY = Path("local")
PATH = DIRECTORY / "step-000000007"


def entry(number: int, count: int, problem: str = "") -> list[Any]:
    """A node's part of step 7."""
    return [7, problem, {"loss": number}, [number, count]]


@given(count=st.integers(1, 6), data=st.data())
def test_a_step_counts_if_all_parts_are_there(count: int, data: st.DataObject) -> None:
    """On whichever nodes, and more than once; its metrics are rank 0's."""
    there = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))
    joined = listing.joined(DIRECTORY, [*([entry(number, count)] for number in there), []])
    assert [PATH] == list(joined)
    if set(there) == set(range(count)):
        assert ("", {"loss": 0}) == (joined[PATH].problem, joined[PATH].metrics)
    else:
        assert f"of {count} on the nodes of this job" in joined[PATH].problem


@pytest.mark.parametrize("entries", [[entry(0, 2), entry(1, 3)], [entry(0, 2), entry(0, 1, "it is damaged")]])
def test_parts_that_do_not_make_a_checkpoint(entries: list[list[Any]]) -> None:
    """Of saves on different numbers of nodes; or with a damaged one, whose problem is named."""
    problem = listing.joined(DIRECTORY, [[entry] for entry in entries])[PATH].problem
    assert problem
    assert all(entry[1] in problem for entry in entries)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_ranks_that_see_one_directory_are_a_node(seen: list[str]) -> None:
    """Its first rank leads it; nodes are numbered by their leaders, from rank 0's on."""
    of_ranks = [Nodes.seen(seen, rank) for rank in range(len(seen))]
    assert {len(set(seen))} == {nodes.count for nodes in of_ranks}
    leaders = [rank for rank, nodes in enumerate(of_ranks) if nodes.leads]
    assert [seen.index(directory) for directory in dict.fromkeys(seen)] == leaders
    assert list(range(len(leaders))) == [of_ranks[leader].number for leader in leaders]
    for rank, nodes in enumerate(of_ranks):
        assert [nodes.is_here(other) for other in range(len(seen))] == [seen[rank] == other for other in seen]
