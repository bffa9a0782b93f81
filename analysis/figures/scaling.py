"""Draws the figures of several ranks: bandwidth over their number, and how they differ in one operation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from analysis.figures.axes import INK, logarithmic, point, rows, scattered, with_legend
from analysis.figures.kinds import NOTHING, Chosen, Picture, Result
from analysis.figures.styles import Style
from analysis.measures.operation import Operation
from analysis.measures.statistics import exactly
from analysis.measures.trials import Trials
from analysis.tables.table import printable

_CEILING: dict[str, Any] = {"color": INK, "linewidth": 1.2}
_IDEAL: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (1, 2))}

_SMALLEST_MARK, _LARGER = 3.5, 1.8

_LONGEST_HOST = 18

_MANY = 32
"""From more ranks on, their points are smaller."""

_LEAST_SHOWN = 0.1
"""The axis extends at least so far from the median rank, so that small differences look small."""


@dataclass(frozen=True, slots=True)
class AtScale:
    """What a method measured at one scale."""

    nodes: int
    tasks_per_node: int
    label: str
    trials: Trials
    ceiling_gbps: float
    """The ceiling of all ranks together; NaN where not measured."""

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.tasks_per_node


def scale(chosen: Sequence[AtScale], styles: Mapping[str, Style], title: str) -> Result:
    """Draw the bandwidth of all ranks together over their number."""
    rated = [(result, rate) for result in chosen if (rate := result.trials.gbps()).estimate > 0]
    scales = {(result.nodes, result.tasks_per_node) for result, _ in rated}
    if len(scales) < 2:
        return "measured at one scale only" if scales else NOTHING
    labels = list(dict.fromkeys(result.label for result, _ in rated))
    ceilings = _fastest([(result.ranks, result.ceiling_gbps) for result in chosen if result.ceiling_gbps > 0])
    others = [Line2D([], [], label="ideal, from the fastest", **_IDEAL)]
    others += [Line2D([], [], label="ceiling, all ranks together", **_CEILING)] if ceilings else []
    figure, axes = with_legend(labels, styles, lines=True, others=others)
    tasks = sorted({number for _, number in scales})
    summaries = []
    for label in labels:
        rates, style = [(result, rate) for result, rate in rated if result.label == label], styles[label]
        line = _fastest([(result.ranks, rate.estimate) for result, rate in rates])
        axes.plot(list(line), list(line.values()), linestyle=style.line, linewidth=0.8, color=style.color)
        for result, rate in rates:
            size = _SMALLEST_MARK + _LARGER * tasks.index(result.tasks_per_node)
            point(axes, exactly(result.ranks), rate, style, size)
        points = (f"{rate.estimate:.3g} GB/s at {result.nodes}x{result.tasks_per_node}" for result, rate in rates)
        summaries.append(f"{label} {', '.join(points)}")
    best = _fastest([(result.ranks, rate.estimate) for result, rate in rated])
    numbers = list(best)
    first, fastest = next(iter(best.items()))
    axes.plot([first, numbers[-1]], [fastest, fastest * numbers[-1] / first], zorder=1, **_IDEAL)
    if ceilings:
        axes.plot(list(ceilings), list(ceilings.values()), zorder=1, **_CEILING)
    ends = [end for _, rate in rated for end in (rate.low, rate.estimate, rate.high) if end > 0]
    logarithmic(axes, "x", [float(number) for number in numbers])
    logarithmic(axes, "y", [*ends, *ceilings.values()])
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.set_xlabel("ranks (nodes × tasks per node)")
    axes.set_ylabel(f"{title} [GB/s]")
    larger = ", the larger the mark the more tasks per node" if len(tasks) > 1 else ""
    caption = (
        f"Scale ({title}): bandwidth of all ranks together with its 95 % interval, over their number{larger}; lines "
        "join the fastest scale at each number of ranks; the dotted one is the bandwidth of the fastest at the "
        "smallest number, if all ranks were as fast"
    )
    roof = "; ".join(f"{value:.3g} GB/s with {number} ranks" for number, value in ceilings.items())
    alt = f"Bandwidth by number of ranks, {title}. {'; '.join(summaries)}." + (f" Ceiling: {roof}." if roof else "")
    return Picture(figure, f"{caption}.", alt)


def _fastest(rates: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return the highest rate by number of ranks, in ascending order."""
    highest: dict[int, float] = {}
    for ranks, rate in sorted(rates):
        highest[ranks] = max(rate, highest.get(ranks, rate))
    return highest


def ranks(chosen: Chosen, styles: Mapping[str, Style], title: str, operation: Operation) -> Result:
    """Draw how long every rank worked by itself, relative to the median rank; name the one that was last most often."""
    imbalances = [
        (method.label, imbalance)
        for method, _ in chosen
        for imbalance in method.imbalances
        if imbalance.operation is operation
    ]
    if not imbalances:
        return "no valid operation of several ranks"
    figure, axes = rows([label for label, _ in imbalances], least_lines=2.9)
    summaries = []
    values = [value for _, imbalance in imbalances for value in imbalance.relative if math.isfinite(value)]
    low, high = min(values, default=1), max(values, default=1)
    low, high = min(low, 1 - _LEAST_SHOWN), max(high, 1 + _LEAST_SHOWN)
    for row, (label, imbalance) in enumerate(imbalances):
        style, count = styles[label], len(imbalance.relative)
        offsets = row - 0.1 + (np.linspace(-0.22, 0.22, count) if count > 1 else np.zeros(1))
        axes.plot([1, 1], [row - 0.38, row + 0.16], color=INK, linewidth=0.8, zorder=1)
        size, alpha = (9, 0.75) if count <= _MANY else (4, 0.4)
        axes.scatter(imbalance.relative, offsets, s=size, alpha=alpha, **scattered(style))
        last = imbalance.last_rank
        words = f"{label}: slowest / median {imbalance.slowest_over_median:.3g}"
        if last.trials:
            index = imbalance.numbers.index(int(last.name))
            x, host = imbalance.relative[index], _short(imbalance.host_of_last)
            rank = f"rank {last.name} ({host})" if host else f"rank {last.name}"
            name = f"{rank}, {last.trials} of {imbalance.trials}"
            axes.scatter([x], [offsets[index]], s=30, facecolors="none", edgecolors=INK, linewidths=0.7)
            side = ("left", 0.01) if x < (low + high) / 2 else ("right", 0.99)
            axes.text(
                side[1], row + 0.21, name, fontsize=5.5, va="top", ha=side[0], transform=axes.get_yaxis_transform()
            )
            words += f", last was {name} trials"
        summaries.append(words)
    room = 0.05 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{title}:\nown work of a rank / the median rank's")
    caption = (
        f"Ranks ({title}): each point is a rank, from the first at the top of a row to the last: the median over the "
        "trials of its own work, before it waits for the others, over that of the rank in the middle. The circle is "
        "around the rank that ended last most often; below are its host, and in how many trials it was the last."
    )
    return Picture(figure, caption, f"Own work of each rank over the median rank's, {title}. {'; '.join(summaries)}.")


def _short(host: str) -> str:
    """Return a host's name without its domain; of a long one both ends, since the last digits distinguish nodes."""
    name = printable(host).partition(".")[0]
    half = _LONGEST_HOST // 2
    return name if len(name) <= _LONGEST_HOST else f"{name[: half - 1]}…{name[-half:]}"
