"""Figures of several ranks hold what was measured: bandwidth at each scale, and each rank's own work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.figures.axes import INK
from analysis.figures.figures import Drawn, draw
from analysis.figures.styles import styles_of
from analysis.logs.load import load_results
from analysis.measures.setting import settings
from support.studies import Ranked

GIB = 2**30


def figures_of(study: Path) -> dict[str, Drawn]:
    """All figures, by name."""
    return {each.name.removeprefix("many-shared-"): each for each in draw(settings(load_results(study)))[0]}


def axes_of(drawn: Drawn) -> Axes:
    """The one pair of axes of a figure."""
    [axes] = drawn.figure.axes
    return axes


def test_bandwidth_over_ranks_with_ideal_and_ceiling(scaled: Path) -> None:
    """Lines join the fastest at each number of ranks; a mark at every scale, larger for more tasks per node."""
    axes = axes_of(figures_of(scaled)["scale-cold"])
    lines = {
        (line.get_color(), line.get_marker()): line for line in axes.lines if len(np.asarray(line.get_xdata())) > 2
    }
    torch = lines[styles_of(["torch_save"])["torch_save"].color, "None"]
    [ceiling] = [line for line in axes.lines if line.get_color() == INK and len(np.asarray(line.get_xdata())) == 4]
    [ideal] = [line for line in axes.lines if line.get_color() == INK and len(np.asarray(line.get_xdata())) == 2]
    marks = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 1]

    assert np.asarray(torch.get_xdata()).tolist() == [1, 2, 4, 8]
    assert np.asarray(torch.get_ydata()) == pytest.approx([GIB / each / 1e9 for each in (7.75, 4.0, 2.0, 2.0)])
    assert np.asarray(ceiling.get_ydata()) == pytest.approx([GIB / each / 1e9 for each in (4.0, 2.25, 1.75, 2.75)])
    fastest = GIB / 3.75 / 1e9  # tensorstore_t5x on one rank
    assert np.asarray(ideal.get_ydata()) == pytest.approx([fastest, 8 * fastest])
    assert len(marks) == 12
    assert len({line.get_markersize() for line in marks}) == 2
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]


def test_the_words_of_the_scale_figure_have_its_numbers(scaled: Path) -> None:
    """Those who don't see it read each scale's bandwidth, and the ceilings."""
    alt = figures_of(scaled)["scale-save"].alt

    assert "torch_save 0.134 GB/s at 1x1, 0.13 GB/s at 1x2, 0.253 GB/s at 2x1" in alt
    assert "Ceiling: 0.268 GB/s with 1 ranks; 0.477 GB/s with 2 ranks" in alt


def test_scales_of_other_shardings_are_not_joined(ranked: Ranked) -> None:
    """Two nodes with a replicated state are no scale of one node with a divided one."""
    ranked(nodes=1, save=[[1.0]] * 2)
    study = ranked(nodes=2, save=[[1.0, 1.0]] * 2, state={"sharding": "replicated"})

    assert not any("scale" in name for name in figures_of(study))


def test_each_rank_is_a_point_and_the_straggler_is_named(ranked: Ranked) -> None:
    """Rank 3 works twice as long as the middle of the others, in every trial."""
    axes = axes_of(figures_of(ranked(nodes=2, tasks=2, save=[[1.0, 1.0, 1.0, 2.0]] * 3))["2x2-ranks-save"])
    points, circle = (np.asarray(each.get_offsets()) for each in axes.collections)

    assert points[:, 0].tolist() == [1, 1, 1, 2]
    assert sorted(points[:, 1]) == points[:, 1].tolist()
    assert circle.tolist() == [points[3].tolist()]
    assert [text.get_text() for text in axes.texts] == ["rank 3 (node1), 3 of 3"]


def test_one_rank_has_no_figure_of_ranks(ranked: Ranked) -> None:
    """Nor does it say that there is none: there is nothing to compare."""
    drawn, absent = draw(settings(load_results(ranked(nodes=1, save=[[1.0]] * 2))))

    assert not any("ranks" in line for line in (*absent, *(each.name for each in drawn)))


def test_ranks_without_a_valid_operation_say_so(ranked: Ranked) -> None:
    """A killed rank in every trial leaves nothing to compare."""
    study = ranked(nodes=2, save=[[1.0, 1.0]], lost=[(0, "save", 1)])
    _, absent = draw(settings(load_results(study)))

    assert "no figure of ranks, save (many, target shared, 2x1): no valid operation of several ranks" in absent


@pytest.mark.parametrize("count", [1, 7])
def test_names_of_stragglers_stay_in_the_figure(count: int, ranked: Ranked) -> None:
    """However long the host's name is, and on whichever side; no two texts overlap."""
    study = Path()
    for number in range(count):
        label = f"tensorstore_variant{number}+chunk_bytes=67108864+driver=zarr3"
        slow = 1.0 + number % 3
        study = ranked(label=label, nodes=64, tasks=2, save=[[1.0] * 127 + [slow + 0.5]] * 3, host="x" * 60)
    figure = figures_of(study)["64x2-ranks-save"].figure
    agg = FigureCanvasAgg(figure)
    agg.draw()  # type: ignore[no-untyped-call]
    [axes] = figure.axes
    assert all("…xxxxxxx63), 3 of 3" in text.get_text() for text in axes.texts)
    shown = [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label]
    boxes = [text.get_window_extent(agg.get_renderer()) for text in shown]  # type: ignore[no-untyped-call]

    for place, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.padded(-0.5).overlaps(other) for other in boxes[place + 1 :])
