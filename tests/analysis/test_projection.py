"""Projections to bigger states and more nodes, from rates that can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.advice.projection import Wanted, project
from analysis.errors import ResultsError
from analysis.tables.projection import projection_table

Make = Callable[..., Any]

# The state has 1 GB and every save lasts 0.5 s: exactly 2 GB/s. Loads: 0.25 s, 4 GB/s.
SAVE, LOAD = [0.5] * 6, [0.25] * 6


def test_node_local_rates_add_up(measured: Make, setting: Make) -> None:
    """1000 GB on 10 nodes with 2 GB/s each are 50 s."""
    projection = project(setting(measured("a", SAVE, LOAD), node_local=True), Wanted(1e11, 10, 10))
    [method] = projection.methods

    assert (method.save.least_s, method.save.most_s) == (50, 50)
    assert (method.load.least_s, method.load.most_s) == (25, 25)
    assert method.save.bound_by == "strategy"
    assert (projection.size_factor, projection.node_factor) == (100, 10)


def test_a_shared_target_without_a_limit_spans_from_all_nodes_to_one(measured: Make, setting: Make) -> None:
    """All that is known: not faster than ten nodes side by side, nor slower than one alone."""
    projection = project(setting(measured("a", SAVE, LOAD)), Wanted(1e11, 10, 10))

    assert (projection.methods[0].save.least_s, projection.methods[0].save.most_s) == (50, 500)
    assert any("without a stated limit" in note for note in projection_table(projection).notes)


def test_a_stated_limit_bounds_a_shared_target(measured: Make, setting: Make) -> None:
    """Ten nodes of 2 GB/s get 5 GB/s in all; a limit that they don't reach changes nothing."""
    shared = setting(measured("a", SAVE, LOAD))
    bound = project(shared, Wanted(1e11, 10, 10, 5)).methods[0].save
    free = project(shared, Wanted(1e11, 10, 10, 100)).methods[0].save

    assert (bound.least_s, bound.most_s, bound.bound_by) == (200, 200, "limit")
    assert (free.least_s, free.most_s, free.bound_by) == (50, 50, "strategy")


def test_a_limit_says_nothing_about_node_local_targets(measured: Make, setting: Make) -> None:
    """They don't lie on the shared filesystem."""
    local = setting(measured("a", SAVE, LOAD), node_local=True)

    assert project(local, Wanted(1e11, 10, 10, 5)).methods == project(local, Wanted(1e11, 10, 10)).methods


def test_no_projection_is_slower_than_what_was_measured(measured: Make, setting: Make) -> None:
    """A ceiling that a method exceeds is none: 2 GB/s were measured, so 1000 GB on 10 nodes take 50 s, and not 100."""
    faster, slower = measured("a", SAVE, LOAD), measured("b", [1.0] * 6, LOAD)
    projection = project(setting(faster, slower, write_gbps=1, node_local=True), Wanted(1e11, 10, 10))

    [first, second] = sorted(projection.methods, key=lambda method: method.label)
    assert (first.save.least_s, first.save.most_s, first.save.bound_by) == (50, 50, "ceiling")
    assert (second.save.least_s, second.save.most_s, second.save.bound_by) == (100, 100, "strategy")
    assert projection.ceiling[0].least_s == 50
    assert math.isnan(projection.ceiling[1].least_s)


def test_measured_on_several_nodes(measured: Make, setting: Make) -> None:
    """Four nodes with 2 GB/s in all are half a GB/s each."""
    projection = project(setting(measured("a", SAVE, LOAD), nodes=4, node_local=True), Wanted(1e11, 10, 10))

    assert projection.methods[0].save.least_s == 200
    assert projection.node_factor == 2.5
    assert projection.size_factor == 400


def test_a_target_of_unknown_kind_is_taken_as_shared(measured: Make, setting: Make) -> None:
    """That is the wider range, and the note says so."""
    projection = project(setting(measured("a", SAVE, LOAD), node_local=None), Wanted(1e11, 10, 10))

    assert projection.methods[0].save.most_s == 500
    assert any("so it is taken as shared" in note for note in projection_table(projection).notes)


def test_one_trial_supports_no_range(measured: Make, setting: Make) -> None:
    """A number without a range would look surer than it is."""
    projection = project(setting(measured("a", [0.5], [0.25])), Wanted(1e11, 10, 10))

    assert math.isnan(projection.methods[0].save.least_s)


def test_far_extrapolations_are_warned_of(measured: Make, setting: Make) -> None:
    """The factor always stands below the table; from ten on, with a warning."""
    near = projection_table(project(setting(measured("a", SAVE, LOAD)), Wanted(1e9, 9, 1))).notes
    far = projection_table(project(setting(measured("a", SAVE, LOAD)), Wanted(1e9, 11, 1))).notes

    assert any("extrapolated by 9 in bytes per node and 1 in nodes" in note for note in near)
    assert not any("beware" in note for note in near)
    assert any("beware" in note for note in far)


@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=8),
    st.floats(1e6, 1e12),
    st.integers(1, 5000),
    st.one_of(st.none(), st.floats(0.1, 1e4)),
    st.booleans(),
)
def test_ranges_are_ranges(
    measured: Make,
    setting: Make,
    saves: list[float],
    parameters: float,
    nodes: int,
    limit_gbps: float | None,
    node_local: bool,
) -> None:
    """The least is never more than the most; more bytes never take less time; nothing beats the limit, nor both the
    ceiling and what was measured.
    """
    where = setting(measured("a", saves, saves), node_local=node_local, write_gbps=3.0)
    span = project(where, Wanted(parameters, 14, nodes, limit_gbps)).methods[0].save
    bigger = project(where, Wanted(2 * parameters, 14, nodes, limit_gbps)).methods[0].save

    assert span.least_s <= span.most_s * (1 + 1e-12)
    assert bigger.least_s == pytest.approx(2 * span.least_s)
    gigabytes = parameters * 14 / 1e9
    assert span.least_s >= gigabytes / (max(3.0, 1 / min(saves)) * nodes) * (1 - 1e-9)
    if limit_gbps is not None and not node_local:
        assert span.least_s >= gigabytes / limit_gbps * (1 - 1e-9)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(0, 14, 1), "--parameters 0: expected a number from 1 to 1e[+]16"),
        (Wanted(math.nan, 14, 1), "--parameters nan"),
        (Wanted(1e9, -1, 1), "--bytes-per-parameter -1"),
        (Wanted(1e9, math.inf, 1), "--bytes-per-parameter inf"),
        (Wanted(1e9, 14, 0), "--nodes 0"),
        (Wanted(1e9, 14, 1, 0), "--shared-limit-gbps 0"),
    ],
)
def test_nonsense_is_refused(wanted: Wanted, message: str, setting: Make) -> None:
    """The message names the option, the number and the range."""
    with pytest.raises(ResultsError, match=message):
        project(setting(), wanted)
