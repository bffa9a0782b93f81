"""Jobs of several ranks beside others: scales, projections, how they share the state, two results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import compare_two
from analysis.advice.projection import Wanted, project
from analysis.logs.load import load_results
from analysis.measures.comparison import compare
from analysis.measures.setting import settings
from analysis.tables.across import across_tables
from analysis.tables.projection import projection_table
from support.logs import GIB
from support.studies import Ranked


def test_jobs_that_share_the_state_differently_do_not_share_a_table(ranked: Ranked) -> None:
    """Neither those of other sharding or contents, nor those loaded by other ranks, or on other nodes."""
    ways: list[dict[str, Any]] = [
        {}, {"state": {"sharding": "tensors"}}, {"state": {"contents": "training"}}, {"load_ranks": 2},
        {"read_shift": 1},
    ]  # fmt: skip
    for number, way in enumerate(ways, 1):
        study = ranked(nodes=2, save=[[1.0, 1.0]], number=number, **way)

    found = settings(load_results(study))
    assert len(found) == len(ways)
    assert all("how ranks share the state" in each.apart for each in found)
    assert sorted({each.agreed["load_ranks"] for each in found}) == ["0", "2"]
    assert sorted(each.state.partition("0123456789ab, ")[2] for each in found) == [
        "among 2 ranks, dim0",
        "among 2 ranks, dim0, each share loaded 1 node from where it was written",
        "among 2 ranks, dim0, loaded on 2 ranks",
        "among 2 ranks, tensors",
        "contents training, among 2 ranks, dim0",
    ]


def test_a_node_is_projected_by_its_part_of_what_all_did(ranked: Ranked) -> None:
    """Two nodes that write a GiB in 2 s, below a ceiling of 1 GiB in 1.25 s, are a quarter of a GiB/s each."""
    study = ranked(nodes=2, save=[[1.75] * 2] * 3, load=[[1.0] * 2] * 3, ceiling=[1.0] * 2)
    [setting] = settings(load_results(study))
    projection = project(setting, Wanted(GIB, 1, 1))

    assert projection.methods[0].save.least_s == pytest.approx(4.0)
    assert projection.methods[0].save.bound_by == "strategy"
    assert projection.ceiling[0].least_s == pytest.approx(2.5)


def test_efficiency_and_share_of_the_ceiling_at_each_scale(scaled: Path) -> None:
    """By hand: a load of torch_save takes 7.75 s on one rank, 4 s on two nodes, 2 s on four."""
    [table] = [table for table in across_tables(compare(load_results(scaled))) if table.name == "scaling"]
    place = {heading: number for number, heading in enumerate(table.headings)}
    rows = {tuple(int(cell.value) for cell in row[1:4]): row for row in table.rows if row[0] == "torch_save"}  # type: ignore[union-attr]

    assert list(rows) == [(1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 4), (4, 1, 4), (4, 2, 8)]
    rates = [row[place["load, cold from the device [GB/s]"]].interval.estimate for row in rows.values()]  # type: ignore[union-attr]
    seconds = [7.75, 8.0, 4.0, 4.0, 2.0, 2.0]
    assert rates == pytest.approx([GIB / each / 1e9 for each in seconds])
    efficiency = [row[place["load, cold from the device, efficiency"]].interval.estimate for row in rows.values()]  # type: ignore[union-attr]
    assert efficiency == pytest.approx(
        [7.75 / each / ranks for each, ranks in zip(seconds, (1, 2, 2, 4, 4, 8), strict=True)]
    )
    of_ceiling = [row[place["load, cold from the device, of ceiling"]].value for row in rows.values()]  # type: ignore[union-attr]
    took = [4.0, 4.25, 2.25, 2.75, 1.75, 2.75]  # 4 s over the nodes, and a quarter of a second more for each rank
    assert of_ceiling == pytest.approx([a / b for a, b in zip(took, seconds, strict=True)])


def test_two_results_are_paired_by_how_ranks_share_the_state(
    ranked: Ranked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one state, saved both ways on both sides, each way is set against its own; a way that one lacks is named."""
    for number, sharding in enumerate(("dim0", "replicated", "tensors"), 1):
        study = ranked(nodes=2, save=[[number, number]] * 2, number=number, state={"sharding": sharding})
    other = tmp_path / "other"
    shutil.copytree(study, other)
    next(other.glob("logs/r03*")).unlink()

    compare_two(study, other, style="csv")

    shown = capsys.readouterr().out
    assert (
        sum(line.startswith("methods,B against A,torch_save,") and ",save," in line for line in shown.splitlines()) == 2
    )
    assert "only in A: many, target shared, 2x1 (not set beside" in shown
    assert "how ranks share the state (tensors)" in shown


def test_a_projection_says_that_the_state_was_replicated(ranked: Ranked) -> None:
    """Its loads moved more than those of a state that nodes share."""
    for sharding, told in (("dim0", False), ("replicated", True)):
        study = ranked(nodes=2, save=[[1.75] * 2] * 3, load=[[1.0] * 2] * 3, state={"sharding": sharding})
        [setting] = settings(load_results(study))
        notes = projection_table(project(setting, Wanted(GIB, 1, 1))).notes

        assert any("every rank loading the whole state" in note for note in notes) == told
