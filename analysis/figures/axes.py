"""Draws what all figures share: the axes for rows and for a legend below, logarithmic scales, points with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.figures.styles import Style, wrapped
from analysis.measures.statistics import Interval

Side = Literal["x", "y"]

INK = "#1f2328"
"""The colour of text, axes and everything that belongs to no strategy; a report replaces it by the page's colour."""

WIDTH_IN = 3.5
"""The width of a column in a paper with two columns."""

_GRID: dict[str, Any] = {"color": "#808080", "alpha": 0.3, "linewidth": 0.4}

_ROW_LINE_IN, _LEGEND_LINE_IN = 0.125, 0.11
"""The heights of a line of text."""

_LOG_FROM = 8.0
"""From this factor between the smallest and the largest value on, an axis is logarithmic."""


def rows(labels: Sequence[str], extra_lines: float = 0, least_lines: float = 1.5) -> tuple[Figure, Axes]:
    """Return axes with one row per label, the first on top; a row has the height of `least_lines` lines, or more."""
    texts = wrapped(labels)
    lines = max(least_lines, *(text.count("\n") + 1.2 for text in texts))
    height = 0.5 + _ROW_LINE_IN * (lines * len(texts) + extra_lines)
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(texts)), texts)
    axes.set_ylim(len(texts) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", **_GRID)
    plain(axes)
    return figure, axes


def labelled_rows(
    labels: Sequence[str], methods: Sequence[str], styles: Mapping[str, Style], others: Sequence[Line2D]
) -> tuple[Figure, Axes]:
    """Return axes with one row per label, the first on top, and a legend of methods and other lines below."""
    handles = _handles(methods, wrapped(methods), styles)
    lines_below = math.ceil(len(methods) / 2) * 1.3 + len(others)
    figure, axes = rows(labels, lines_below, least_lines=2.2 + 0.15 * len(methods))
    columns = 2 if len(methods) + len(others) > 2 else 1
    figure.legend(handles=[*handles, *others], loc="outside lower left", ncols=columns, frameon=False)
    return figure, axes


def _handles(
    labels: Sequence[str], texts: Sequence[str], styles: Mapping[str, Style], *, lines: bool = False
) -> list[Line2D]:
    return [
        Line2D([], [], markersize=4, label=text, **marks(styles[label], line=lines))
        for label, text in zip(labels, texts, strict=True)
    ]


def with_legend(
    labels: Sequence[str], styles: Mapping[str, Style], *, lines: bool = False, others: Sequence[Line2D] = ()
) -> tuple[Figure, Axes]:
    """Return axes with a legend below, in two columns where it is long: all labels, then the other lines."""
    texts = wrapped(labels)
    columns = 2 if len(texts) + len(others) > 2 else 1
    heights = [text.count("\n") + 1.4 for text in (*texts, *(str(line.get_label()) for line in others))]
    per_column = math.ceil(len(heights) / columns)
    tallest = max(sum(heights[start : start + per_column]) for start in range(0, len(heights), per_column))
    figure = Figure(figsize=(WIDTH_IN, 2.2 + _LEGEND_LINE_IN * tallest), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(**_GRID)
    plain(axes)
    handles = [*_handles(labels, texts, styles, lines=lines), *others]
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, handlelength=2.6)
    return figure, axes


def plain(axes: Axes) -> None:
    """Leave out the lines above and to the right of the axes, and draw a grid behind what they show."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def marks(style: Style, *, line: bool = False) -> dict[str, Any]:
    """Return the arguments of `plot` for a strategy: its marks, with or without the line that joins them."""
    return {
        "marker": style.marker,
        "color": style.color,
        "markerfacecolor": style.color if style.filled else "none",
        "markeredgewidth": 0.7,
        "linestyle": style.line if line else "none",
    }


def scattered(style: Style) -> dict[str, Any]:
    """Return the arguments of `scatter` for a strategy."""
    face = style.color if style.filled else "none"
    return {"marker": style.marker, "facecolors": face, "edgecolors": style.color, "linewidths": 0.7}


def swatch(hatch: str, alpha: float, label: str) -> Patch:
    """Return a legend's entry for a part of a bar, in a colour that no strategy has."""
    return Patch(facecolor=("#808080", alpha), hatch=hatch, edgecolor=INK, linewidth=0.4, label=label)


def point(axes: Axes, x: Interval, y: Interval, style: Style, size: float = 5) -> None:
    """Draw a point with its intervals, where they are known."""
    if not math.isnan(x.low) and x.low != x.high:
        axes.plot([x.low, x.high], [y.estimate, y.estimate], color=style.color, linewidth=0.8)
    if not math.isnan(y.low) and y.low != y.high:
        axes.plot([x.estimate, x.estimate], [y.low, y.high], color=style.color, linewidth=0.8)
    axes.plot([x.estimate], [y.estimate], markersize=size, **marks(style))


def spread(axes: Axes, side: Side, values: Sequence[float], label: str) -> None:
    """Set a scale for durations: from zero, or logarithmic where they differ by much; `label` has the unit."""
    if min(values) > 0 and max(values) > _LOG_FROM * min(values):
        logarithmic(axes, side, values)
        label = f"{label}, logarithmic"
    else:
        axes.set(**{f"{side}lim": (0, max(values) * 1.08 or 1)})
        _axis(axes, side).set_major_locator(MaxNLocator(5))
    _axis(axes, side).set_label_text(label)


def logarithmic(axes: Axes, side: Side, positive: Sequence[float]) -> None:
    """Set a logarithmic scale with plain numbers at its ticks, and room around these values."""
    low, high = min(positive), max(positive)
    room = max(1.25, (high / low) ** 0.06)
    decades = math.log10(high * room * room / low)
    axes.set(**{f"{side}scale": "log", f"{side}lim": (low / room, high * room)})
    axis = _axis(axes, side)
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 2.2 else (1, 3) if decades > 1.4 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _axis(axes: Axes, side: Side) -> Axis:
    return axes.xaxis if side == "x" else axes.yaxis
