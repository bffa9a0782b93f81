"""Figures of training loops hold what was measured: lost share over the interval, its parts, steps over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from analysis.figures.axes import INK, WIDTH_IN
from analysis.figures.figures import Drawn, draw, save
from analysis.figures.styles import styles_of
from analysis.measures.lost import meeting_s
from analysis.measures.setting import Setting
from support.loop_figures import ENOUGH, SHORT, SYNC, THREAD, setting_of
from support.loops import Costs, LoopSimulation


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """One strategy, synchronous, in a thread, and not at all."""
    return setting_of(
        tmp_path_factory.mktemp("both"),
        LoopSimulation(way="sync", costs=SYNC, spec=ENOUGH, seed=1),
        LoopSimulation(way="thread", costs=THREAD, spec=ENOUGH, seed=2),
        LoopSimulation(way="none", costs=Costs(), spec=ENOUGH, seed=3),
    )


@pytest.fixture(scope="module")
def drawn(both: Setting) -> dict[str, Drawn]:
    """Their figures, by kind."""
    return {figure.kind: figure for figure in draw([both])[0]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    """The figures of two nodes, of which the second alone is slow."""
    slow = Costs(snapshot_s=2.0, latency_s=4.0, slow_rank=1)
    setting = setting_of(
        tmp_path_factory.mktemp("ranks"), LoopSimulation(costs=slow, nodes=2, target="shared", spec=SHORT)
    )
    return {figure.kind: figure for figure in draw([setting])[0]}


def xy(line: Any) -> list[tuple[float, float]]:
    """The points of a line."""
    xs, ys = (np.asarray(data, float).tolist() for data in (line.get_xdata(), line.get_ydata()))
    return list(zip(xs, ys, strict=True))


def marked(axes: Axes, marker: str, **properties: Any) -> list[tuple[float, float]]:
    """The single points with that marker, and these properties of their lines."""
    return [
        xy(line)[0]
        for line in axes.lines
        if line.get_marker() == marker
        and len(xy(line)) == 1
        and all(getattr(line, f"get_{name}")() == value for name, value in properties.items())
    ]


def bars(axes: Axes) -> list[Rectangle]:
    """What is filled."""
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_a_loop_has_three_figures_and_none_of_trials(both: Setting) -> None:
    """No trial was measured, so that nothing says that figures of trials are missing."""
    figures, absent = draw([both])

    names = [figure.name.removeprefix("tiny-disk-1x1-compute-") for figure in figures]
    assert names == ["lost-share", "lost-parts", "loop-steps"]
    assert absent == []
    assert {float(figure.figure.get_size_inches()[0]) for figure in figures} == {WIDTH_IN}
    assert all("compute steps of 1 s on 2 cores, a save every 10 steps" in figure.caption for figure in figures)


def test_points_are_the_measured_shares(both: Setting, drawn: dict[str, Drawn]) -> None:
    """Three of ten seconds are 30 %; a strategy has one colour and marker, whatever its way."""
    [axes] = drawn["lost-share"].figure.axes
    style = styles_of(["torch_save"])["torch_save"]
    loops = {method.loop.way: method.loop for method in both.methods if method.loop}
    points = marked(axes, style.marker, markersize=5, color=style.color)

    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("checkpoint interval [s]", "training time lost [%]")
    for way, lost_s in (("sync", 3), ("thread", 0.6 + 3.5 * 0.2 + 0.3)):  # 3 or 4 steps are disturbed
        [at] = loops[way].at
        assert (at.interval_s, 100 * at.share.estimate) in points
        assert 100 * at.share.estimate == pytest.approx(100 * lost_s / 10, rel=0.12)


def test_synchronous_and_asynchronous_lines_differ_without_colour(drawn: dict[str, Drawn]) -> None:
    """The synchronous one is solid with a filled marker; every other way has a line of its own."""
    handles = {
        handle.get_label(): handle for handle in drawn["lost-share"].figure.legends[0].legend_handles
    }  # fmt: skip
    sync, thread = handles["torch_save\n+way=sync"], handles["torch_save\n+way=thread"]

    assert (sync.get_linestyle(), sync.get_fillstyle()) == ("-", "full")  # type: ignore[union-attr]
    assert (thread.get_linestyle(), thread.get_fillstyle()) == ("--", "none")  # type: ignore[union-attr]
    assert sync.get_color() == thread.get_color()  # type: ignore[union-attr]


def test_lines_are_the_model_beyond_what_was_measured(both: Setting, drawn: dict[str, Drawn]) -> None:
    """At an interval thirty times as long, a save costs a thirtieth."""
    [axes] = drawn["lost-share"].figure.axes
    lines = [xy(line) for line in axes.lines if len(xy(line)) > 100]

    assert len(lines) == 2  # a loop that saves nothing has no model
    for line, way in zip(lines, ("sync", "thread"), strict=True):
        [loop] = [method.loop for method in both.methods if method.loop and method.loop.way == way]
        interval_s, percent = line[-1]
        assert interval_s == pytest.approx(30 * loop.at[0].interval_s, rel=0.02)
        assert percent == pytest.approx(100 * loop.unhurried.lost.estimate / interval_s)


def test_the_ring_is_where_waiting_costs_as_much_as_saving(both: Setting, drawn: dict[str, Drawn]) -> None:
    """A save of 5.2 s waits for 3 s, the time of the synchronous one, if called every 2.2 s; the tick is where it
    begins to wait.
    """
    figure = drawn["lost-share"]
    [axes] = figure.figure.axes
    loops = {method.loop.way: method.loop for method in both.methods if method.loop}
    sync, thread = loops["sync"], loops["thread"]
    interval = meeting_s(sync, thread)
    meeting = interval.estimate
    limit = thread.shortest_s - thread.unhurried.lost.estimate

    assert meeting == pytest.approx(2.2, rel=0.05)
    assert marked(axes, "o", color=INK) == [(meeting, 100 * sync.share_at(meeting).estimate)]
    assert marked(axes, "|", color=INK) == [(limit, 100 * thread.share_at(limit).estimate)]
    words = f"{meeting:.2g} s ({interval.low:.2g} to {interval.high:.2g})"
    legend = [text.get_text() for text in figure.figure.legends[0].get_texts()]
    assert f"as much as synchronous:\ntorch_save\n+way=thread\n{words}" == legend[-1]
    assert f"as much as torch_save+way=sync at {words}: " in figure.alt


def test_lines_that_do_not_meet_have_no_ring(tmp_path: Path) -> None:
    """An asynchronous save that always loses more than the synchronous one is at no interval equal to it."""
    worse = Costs(snapshot_s=3.5, latency_s=8.0, interference_s=0.2)
    setting = setting_of(
        tmp_path,
        LoopSimulation(way="sync", costs=SYNC, spec=SHORT),
        LoopSimulation(costs=worse, spec=SHORT, seed=1),
    )
    [share] = [figure for figure in draw([setting])[0] if figure.kind == "lost-share"]

    assert marked(share.figure.axes[0], "o", color=INK) == []
    assert "as much as" not in share.alt
    assert not [text for text in share.figure.legends[0].get_texts() if "as much as" in text.get_text()]


@pytest.mark.parametrize("positive", [True, False])
def test_what_may_be_nothing_is_an_arrow_down(positive: bool, tmp_path: Path) -> None:
    """Steps as long with saves as without: a logarithmic axis has no zero, which the interval reaches."""
    for seed in range(10, 40):
        simulation = LoopSimulation(way="none", costs=Costs(), spec=ENOUGH, seed=seed)
        setting = setting_of(tmp_path / str(seed), simulation)
        assert setting.methods[0].loop
        [at] = setting.methods[0].loop.at
        if at.share.low <= 0 < at.share.high and (at.share.estimate > 0) == positive:
            break
    [share] = [figure for figure in draw([setting])[0] if figure.kind == "lost-share"]
    [axes] = share.figure.axes
    [arrow] = axes.texts

    shown = at.share.estimate if positive else at.share.high
    assert [xy(line) for line in axes.lines] == [[(at.interval_s, 100 * shown)]]
    assert arrow.get_position() == (at.interval_s, 100 * at.share.high)
    assert arrow.xy == (at.interval_s, axes.get_ylim()[0])  # type: ignore[attr-defined]
    assert "not significant" in share.alt


def test_parts_are_stacked_to_the_lost_time(drawn: dict[str, Drawn]) -> None:
    """The sync bar is its call; the thread's has snapshot, call, interference and tail, told apart by hatches."""
    [axes] = drawn["lost-parts"].figure.axes
    by_row: dict[int, list[Rectangle]] = {}
    for bar in bars(axes):
        by_row.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    thread = by_row[labels.index("torch_save\n+way=thread")]
    swatches = drawn["lost-parts"].figure.legends[0].get_patches()

    assert sum(bar.get_width() for bar in by_row[0]) == pytest.approx(3, abs=0.15)
    assert [bar.get_width() for bar in thread] == pytest.approx([0, 0.5, 0.1, 0, 0.7, 0.3], abs=0.15)
    assert [bar.get_x() for bar in thread] == pytest.approx([0, 0, 0.5, 0.6, 0.6, 1.3], abs=0.15)
    assert len({bar.get_hatch() for bar in swatches}) == 6
    assert [text.get_text() for text in drawn["lost-parts"].figure.legends[0].get_texts()] == [
        "wait", "snapshot", "call", "update wait", "interference", "tail",
    ]  # fmt: skip


def test_the_whole_has_its_interval(both: Setting, drawn: dict[str, Drawn]) -> None:
    """The upright line is the median, the flat one its interval, and what is not significant is marked as such."""
    [axes] = drawn["lost-parts"].figure.axes
    lines = [xy(line) for line in axes.lines]
    for row, method in enumerate(both.methods):
        assert method.loop
        whole = method.loop.at[0].lost.interval
        assert [(whole.estimate, row - 0.42), (whole.estimate, row + 0.42)] in lines
        assert [(whole.low, row), (whole.high, row)] in lines
    texts = {text.get_text().partition("\n")[2] for text in axes.texts}
    assert "not significant" in texts


def pieces(axes: Axes, hatch: str) -> list[float]:
    """How high the filled pieces with that hatch are."""
    return [bar.get_height() for bar in bars(axes) if (bar.get_hatch() or "") == hatch and bar.get_alpha() is None]


def panel(figure: Drawn, label: str) -> Axes:
    """The axes of a method."""
    return next(axes for axes in figure.figure.axes if axes.get_title(loc="left").startswith(label))


def test_each_step_shows_what_it_took_above_the_reference(drawn: dict[str, Drawn]) -> None:
    """Blocked, interference and tail are stacked on the reference, and have a hatch and a tone of their own."""
    assert len(drawn["loop-steps"].figure.axes) == 3
    axes = panel(drawn["loop-steps"], "torch_save+way=thread")
    swatches = drawn["loop-steps"].figure.legends[0].get_patches()

    assert pieces(axes, "") == pytest.approx([0.6, 0.6], abs=0.02)
    interference = [height for height in pieces(axes, "|||||") if height > 0.1]
    assert len(interference) in {6, 7, 8}
    assert interference == pytest.approx([0.2] * len(interference), abs=0.05)
    assert [height for height in pieces(axes, "\\" * 5) if height > 0.1] == pytest.approx([0.3] * 2, abs=0.05)
    assert [text.get_text() for text in drawn["loop-steps"].figure.legends[0].get_texts()] == [
        "call", "commit", "blocked", "interference", "tail", "95 % without saves",
    ]  # fmt: skip
    assert len({(patch.get_hatch(), patch.get_facecolor()[3]) for patch in swatches}) == 4
    assert not bars(panel(drawn["loop-steps"], "torch_save+way=none"))[1:]  # the band alone


def test_calls_and_commits_are_marked(drawn: dict[str, Drawn]) -> None:
    """The commit is 5.2 s after the call; every save of the block has both."""
    axes = panel(drawn["loop-steps"], "torch_save+way=thread")
    calls, commits = ([xy(line)[0][0] for line in axes.lines if line.get_marker() == marker] for marker in "vD")

    assert len(calls) == 2
    assert np.subtract(commits, calls).tolist() == pytest.approx([5.2, 5.2])
    assert "committed 5.2 s later, blocked 0.6 s" in drawn["loop-steps"].alt


def test_the_reference_is_a_line_with_its_band(both: Setting, drawn: dict[str, Drawn]) -> None:
    """Of the same job."""
    axes = panel(drawn["loop-steps"], "torch_save+way=sync")
    assert both.methods[0].loop
    reference = both.methods[0].loop.jobs[0].reference
    band = next(bar for bar in bars(axes) if to_hex(bar.get_facecolor()) == "#808080")

    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((reference.low_s, reference.high_s))
    assert [reference.median_s] * 2 in [[y for _, y in xy(line)] for line in axes.lines]


def test_the_straggler_is_named(ranks: dict[str, Drawn]) -> None:
    """With several ranks: by which part it held the others, and in how many saves."""
    [axes] = ranks["loop-steps"].figure.axes

    assert axes.get_title(loc="left").split("\n") == [
        "torch_save+way=thread", "slowest: rank 1 (node1), by snapshot, in 2 of 2 saves",
    ]  # fmt: skip
    assert "slowest: rank 1 (node1), by snapshot, in 2 of 2 saves" in ranks["loop-steps"].alt
    assert "the slowest rank" in ranks["loop-steps"].caption


def test_a_straggler_that_writes_late_is_named(tmp_path: Path) -> None:
    """Although no step shows it."""
    setting = setting_of(tmp_path, LoopSimulation(costs=Costs(latency_s=4.0, writer=1), nodes=2, spec=SHORT))
    [steps] = [figure for figure in draw([setting])[0] if figure.kind == "loop-steps"]

    assert "slowest: rank 1 (node1), by writing, in 2 of 2 saves" in steps.alt


def test_the_same_loop_gives_the_same_bytes(both: Setting, tmp_path: Path) -> None:
    """As other figures do."""
    for number in (1, 2):
        for figure in draw([both])[0]:
            for file_format in ("svg", "pdf"):
                save(figure, file_format, tmp_path / f"{figure.kind}-{number}.{file_format}")
    for path in tmp_path.glob("*-1.*"):
        assert path.read_bytes() == path.with_name(path.name.replace("-1.", "-2.")).read_bytes()
