"""Figures hold what was measured: their axes are inspected, not their pictures."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.errors import ResultsError
from analysis.figures.axes import WIDTH_IN
from analysis.figures.figures import Drawn, draw, write
from analysis.figures.kinds import pareto_front
from analysis.figures.styles import styles_of
from analysis.figures.svg import inline
from analysis.logs.load import load_results
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting, settings
from support.studies import StudyOnDisk

Make = Callable[..., Any]
GIB = 2**30
HOSTILE = '<script>alert(1)</script> $\\frac{1}{0}$ "x" 日本 \x1b[31m ../../etc/passwd'


@pytest.fixture
def two(measured: Make, setting: Make) -> Setting:
    """Two methods with all that a figure may need."""
    made: Setting = setting(
        measured("torch_save", [2.0, 2.2, 2.1], [1.0, 1.1], size_bytes=4 * GIB, call=[1.0, 1.2, 1.1]),
        measured("tensorstore_t5x", [3.0, 3.3], [0.5, 0.6], size_bytes=2 * GIB, call=[2.0, 2.2]),
        write_gbps=1.5,
        read_gbps=2.5,
    )
    return made


def axes_of(drawn: Drawn) -> Axes:
    """The one pair of axes of a figure."""
    [axes] = drawn.figure.axes
    return axes


def named(drawn: list[Drawn], ending: str) -> Drawn:
    """The figure of that kind."""
    return next(each for each in drawn if each.name.endswith(ending))


def test_all_figures_of_a_setting(two: Setting) -> None:
    """One of each kind for saves and for cold loads; what there is no data for is named, with the reason."""
    drawn, absent = draw([two])

    assert [each.name.removeprefix("tiny-disk-1x1-") for each in drawn] == [
        "trials-save", "ecdf-save", "phases", "roofline-save", "pareto-save", "drift-save",
        "trials-cold", "ecdf-cold", "roofline-cold", "pareto-cold", "drift-cold",
    ]  # fmt: skip
    assert absent == [
        "no figure of scale, save (tiny, target disk): measured at one scale only",
        "no figure of scale, load, cold from the device (tiny, target disk): measured at one scale only",
    ]
    assert {float(each.figure.get_size_inches()[0]) for each in drawn} == {WIDTH_IN}
    assert all(each.caption and each.alt for each in drawn)


def test_every_trial_is_a_point_with_its_median_and_interval(two: Setting) -> None:
    """Points lie at the durations, in the method's row; the median's line at the median."""
    axes = axes_of(named(draw([two])[0], "trials-save"))
    points = [np.asarray(each.get_offsets()) for each in axes.collections]
    lines = [np.asarray(line.get_xdata(), float).tolist() for line in axes.lines]
    median = two.methods[0][Operation.SAVE].median()

    assert [each[:, 0].tolist() for each in points] == [[2.0, 2.2, 2.1], [3.0, 3.3]]
    assert [np.round(each[:, 1]).tolist() for each in points] == [[0] * 3, [1] * 2]
    assert lines[:2] == [[2.1, 2.1], [median.low, median.high]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["torch_save", "tensorstore_t5x"]
    assert axes.get_xlabel() == "save [s]"


def test_distributions_end_at_one(two: Setting) -> None:
    """Each step is one trial."""
    axes = axes_of(named(draw([two])[0], "ecdf-save"))
    marked = axes.lines[1]

    assert np.asarray(marked.get_xdata()).tolist() == [2.0, 2.1, 2.2]
    assert np.asarray(marked.get_ydata()).tolist() == pytest.approx([1 / 3, 2 / 3, 1])


def test_phases_are_stacked_to_the_mean_of_the_whole(two: Setting) -> None:
    """One bar for each phase of each method, each where the one before ends."""
    axes = axes_of(named(draw([two])[0], "phases"))
    bars = [bar for container in axes.containers for bar in container.patches]

    assert [round(bar.get_width(), 6) for bar in bars] == [1.1, 1.0, 2.1, 1.05]
    assert [round(bar.get_x(), 6) for bar in bars] == [0, 1.1, 0, 2.1]
    assert [text.get_text() for text in axes.texts] == [" 2.1 s", " 3.15 s"]


def test_the_roof_is_the_measured_ceiling(two: Setting) -> None:
    """The line is the target's own rate; a gigabyte in 2.1 s is a point at 0.476 GB/s."""
    axes = axes_of(named(draw([two])[0], "roofline-save"))
    roof, *others = axes.lines

    assert list(roof.get_ydata()) == [1.5, 1.5]
    heights = [float(np.asarray(line.get_ydata())[0]) for line in others if len(np.asarray(line.get_xdata())) == 1]
    assert heights == pytest.approx([1 / 2.1, 1 / 3.15])


def test_the_front_joins_what_nothing_beats(two: Setting) -> None:
    """torch_save is faster, T5X smaller: both are on it."""
    drawn = named(draw([two])[0], "pareto-save")
    front = axes_of(drawn).lines[0]

    assert np.asarray(front.get_xdata()).tolist() == pytest.approx([2.1, 3.15])
    assert np.asarray(front.get_ydata()).tolist() == [4, 2]
    assert drawn.alt.endswith("Not beaten in both: torch_save, tensorstore_t5x.")


def test_drift_is_in_order_of_time(two: Setting) -> None:
    """A minute between trials is a minute on the axis."""
    line = axes_of(named(draw([two])[0], "drift-save")).lines[0]

    assert np.asarray(line.get_xdata()).tolist() == [0, 1, 2]
    assert np.asarray(line.get_ydata()).tolist() == [2.0, 2.2, 2.1]


def test_scale_needs_two_scales(two: Setting, measured: Make, setting: Make) -> None:
    """A point for each scale, with the bandwidth that was measured there."""
    drawn, absent = draw([two, setting(measured("torch_save", [1.0, 1.0]), nodes=4, tasks_per_node=2)])
    scale = named(drawn, "tiny-disk-scale-save")

    assert np.asarray(axes_of(scale).lines[0].get_xdata()).tolist() == [1, 8]
    assert np.asarray(axes_of(scale).lines[0].get_ydata()).tolist() == pytest.approx([1 / 2.1, 1])
    assert scale.setting is None
    assert "no figure of scale, load, cold from the device (tiny, target disk): measured at one scale only" in absent


def test_a_strategy_has_one_colour_in_all_figures(two: Setting) -> None:
    """Points, lines, bars and legends show torch_save in its own blue."""
    own = styles_of(["torch_save"])["torch_save"].color
    drawn, _ = draw([two])

    for each in drawn:
        legend = each.figure.legends[0].legend_handles[0] if each.figure.legends else None
        if not each.name.endswith("phases") and legend is not None:
            assert legend.get_color() == own, each.name  # type: ignore[union-attr]
    trials = axes_of(named(drawn, "trials-save")).collections[0]
    assert np.round(np.asarray(trials.get_edgecolor())[0][:3] * 255).tolist() == [0, 114, 178]


def test_nothing_measured_gives_no_figure(measured: Make, setting: Make) -> None:
    """An empty picture would look like a result."""
    drawn, absent = draw([setting(measured("torch_save"))])

    assert drawn == []
    assert "no figure of trials, save (tiny, target disk, 1x1): no valid trial" in absent
    assert len(absent) == 12


def test_an_unknown_ceiling_gives_no_roofline(measured: Make, setting: Make) -> None:
    """All other figures are there."""
    drawn, absent = draw([setting(measured("a", [1.0, 2.0], [1.0, 2.0], size_bytes=GIB))])

    assert not any("roofline" in each.name for each in drawn)
    assert "no figure of roofline, save (tiny, target disk, 1x1): the ceiling of the target was not measured" in absent


def test_figures_of_real_logs(three_methods: StudyOnDisk) -> None:
    """From a log to an axis: warm-ups and invalid samples are no points."""
    drawn, _ = draw(settings(load_results(three_methods.root)))
    axes = axes_of(named(drawn, "trials-save"))

    assert [sorted(np.asarray(each.get_offsets())[:, 0].tolist()) for each in axes.collections] == [
        [2, 4, 6],
        [80, 87.6, 100],
        [40, 43.8, 50],
    ]
    assert axes.get_xlabel() == "save [s], logarithmic"


def test_files_in_all_formats_are_the_same_each_time(two: Setting, tmp_path: Path) -> None:
    """SVG with text as text, PDF with its fonts, PNG; no date, no random id."""
    for directory in ("first", "second"):
        write(draw([two])[0], tmp_path / directory)
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}

    assert len(first) == 3 * 11
    assert first == second
    svg = first["tiny-disk-1x1-trials-save.svg"]
    assert b">torch_save</text>" in svg
    pdf = first["tiny-disk-1x1-trials-save.pdf"]
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert not re.search(rb"CreationDate|20\d\d-\d\d-\d\d", pdf + svg)
    assert first["tiny-disk-1x1-trials-save.png"].startswith(b"\x89PNG")


def test_nothing_in_a_label_can_spoil_a_figure(measured: Make, setting: Make, tmp_path: Path) -> None:
    """Markup, formulas, escapes and paths stay text; file names keep to letters, digits, dots and dashes."""
    method = measured(HOSTILE, [1.0, 2.0], [1.0, 2.0], size_bytes=GIB, call=[0.5, 1.0])
    drawn, _ = draw([setting(method, study="../" + HOSTILE, target=HOSTILE)])
    write(drawn, tmp_path / "figures")

    assert {path.parent for path in tmp_path.rglob("*.svg")} == {tmp_path / "figures"}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", each.name) for each in drawn)
    for each in drawn:
        tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(inline(each, "a")).iter()}
        assert not tags & {"script", "image", "foreignObject", "style", "a"}


def test_two_figures_in_one_page_share_no_id(two: Setting) -> None:
    """Each one's ids, and what refers to them, have its prefix; text has the page's colour."""
    one, other = (inline(each, f"f{number}") for number, each in enumerate(draw([two])[0][:2]))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, other)]

    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]*)", one)) <= ids[0]
    assert "currentColor" in one
    assert "#1f2328" not in one


def test_a_directory_that_cannot_be_written_is_one_message(two: Setting, tmp_path: Path) -> None:
    """What, and why."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"can't write figures to .*file"):
        write(draw([two])[0], tmp_path / "file")


def test_names_are_unique(measured: Make, setting: Make) -> None:
    """Two settings of the same name, apart for their state, give two files."""
    one = setting(measured("a", [1.0, 2.0]))
    drawn, _ = draw([one, setting(measured("a", [1.0, 2.0]), apart="another state")])

    assert len({each.name for each in drawn}) == len(drawn)


@pytest.mark.parametrize("count", [3, 15])
def test_labels_lie_beside_each_other(count: int, measured: Make, setting: Make) -> None:
    """With few and with many long labels, no two texts of a figure overlap, and none leaves it."""
    methods = [
        measured(f"tensorstore_variant{number:02}+chunk_bytes=67108864+driver=zarr3", [1.5**number, 1.6**number],
                 [1.2**number, 1.3**number], size_bytes=GIB * (1 + number), call=[0.5 * 1.5**number] * 2)
        for number in range(count)
    ]  # fmt: skip
    methods[0] = measured("a_name_without_any_place_to_break_it_" * 3, [1, 2], [1, 2], size_bytes=GIB, call=[1, 1])
    for drawn in draw([setting(*methods, write_gbps=0.5, read_gbps=0.7)])[0]:
        figure, canvas = drawn.figure, drawn.figure.bbox
        agg = FigureCanvasAgg(figure)
        agg.draw()
        renderer = agg.get_renderer()
        axes = axes_of(drawn)
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        shown = [tick for tick in ticks if tick.get_text() and _in_view(tick, axes)]
        legend = [text for each in figure.legends for text in each.get_texts()]
        boxes = [text.get_window_extent(renderer) for text in (*shown, *legend, axes.xaxis.label, axes.yaxis.label)]
        boxes = [box for box in boxes if box.width > 0]
        for place, box in enumerate(boxes):
            assert box.x0 >= canvas.x0 - 1, drawn.name
            assert box.x1 <= canvas.x1 + 1, drawn.name
            assert box.y0 >= canvas.y0 - 1, drawn.name
            assert box.y1 <= canvas.y1 + 1, drawn.name
            for other in boxes[place + 1 :]:
                assert not box.padded(-0.5).overlaps(other), drawn.name


def _in_view(tick: Any, axes: Axes) -> bool:
    """Whether a tick is drawn: matplotlib keeps some beyond the ends."""
    x, y = tick.get_position()
    low, high = sorted(axes.get_xlim() if y == 0 and tick in axes.get_xticklabels() else axes.get_ylim())
    value = x if tick in axes.get_xticklabels() else y
    return bool(low <= value <= high)


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_no_other_point_beats(given_points: list[tuple[int, int]]) -> None:
    """Every point is on the front, or beaten by one that is; those on it don't beat each other."""
    front = pareto_front([(float(x), float(y)) for x, y in given_points])

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    on_it = [given_points[place] for place in front]
    assert on_it
    for place, each in enumerate(given_points):
        assert (place in front) != any(beats(other, each) for other in on_it)
    assert not any(math.isnan(value) for each in on_it for value in each)
