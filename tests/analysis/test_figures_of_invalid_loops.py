"""Figures of training loops with invalid saves, without a valid one, and with labels that are long or markup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.figures.figures import Drawn, draw
from analysis.figures.svg import inline
from support.loop_figures import SHORT, SYNC, THREAD, setting_of
from support.loops import LoopSimulation


def test_invalid_saves_are_crosses_and_only_shown_if_no_block_is_without(tmp_path: Path) -> None:
    """A block whose saves are all valid is preferred; else calls of invalid ones are crosses, with the reason."""
    first = LoopSimulation(costs=THREAD, spec=SHORT, reasons={0: "wrote later values"})
    [steps] = [one for one in draw([setting_of(tmp_path / "one", first)])[0] if one.kind == "loop-steps"]
    assert "invalid" not in steps.alt

    every = LoopSimulation(costs=THREAD, spec=SHORT, reasons={0: "late", 2: "late", 4: "late"})
    [steps] = [one for one in draw([setting_of(tmp_path / "every", every)])[0] if one.kind == "loop-steps"]
    [axes] = steps.figure.axes
    assert "(invalid: late)" in steps.alt
    assert len([line for line in axes.lines if line.get_marker() == "x"]) == 1


def test_a_loop_without_a_valid_save_says_so(tmp_path: Path) -> None:
    """Steps are drawn nevertheless: they show what went wrong."""
    broken = LoopSimulation(costs=THREAD, spec=SHORT, reasons=dict.fromkeys(range(6), "torn"))
    figures, absent = draw([setting_of(tmp_path, broken)])

    assert [figure.kind for figure in figures] == ["loop-steps"]
    where = "tiny, target disk, 1x1"
    assert absent == [
        f"no figure of {kind} ({where}): no valid save beside steps without checkpoints"
        for kind in ("lost-share", "lost-parts")
    ]


def test_long_labels_stay_inside_and_are_no_markup(tmp_path: Path) -> None:
    """No text of a figure of many methods leaves it, and none is an element."""
    label = "torch_dcp+single_file_per_rank=False+note=<script>alert(1)"
    simulations = [
        LoopSimulation(f"{label}+threads={number}", way, costs, spec={**SHORT, "every": [3, 10]}, seed=number)
        for number in range(3)
        for way, costs in (("sync", SYNC), ("library-process", THREAD))
    ]
    for figure in draw([setting_of(tmp_path, *simulations)])[0]:
        assert "<script" not in inline(figure, "a")
        agg = FigureCanvasAgg(figure.figure)
        agg.draw()
        for box in _texts(figure, agg):
            assert box.x0 >= -1, figure.name
            assert box.x1 <= figure.figure.bbox.x1 + 1, figure.name
            assert box.y0 >= -1, figure.name


def _texts(figure: Drawn, agg: FigureCanvasAgg) -> Sequence[Any]:
    renderer = agg.get_renderer()
    legend = [text for legend in figure.figure.legends for text in legend.get_texts()]
    axes = [
        text
        for one in figure.figure.axes
        for text in (*one.get_yticklabels(), *one.texts, one.xaxis.label, one.yaxis.label, one._left_title)  # type: ignore[attr-defined]
    ]
    boxes = [text.get_window_extent(renderer) for text in (*legend, *axes) if text.get_text()]
    return [box for box in boxes if box.width > 0]
