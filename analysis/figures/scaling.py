"""How figures of several ranks are drawn: bandwidth over their number, and how they differ in one operation."""

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
from analysis.figures.styles import Look
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
"""How far from the median rank the axis reaches at least: where ranks hardly differ, it should look so."""


@dataclass(frozen=True, slots=True)
class AtScale:
    """What a method measured at one scale."""

    nodes: int
    tasks_per_node: int
    label: str
    trials: Trials
    ceiling_gbps: float
    """Of all ranks together; NaN where not measured."""

    @property
    def ranks(self) -> int:
        """In all."""
        return self.nodes * self.tasks_per_node


def scale(chosen: Sequence[AtScale], looks: Mapping[str, Look], title: str) -> Result:
    """Bandwidth of all ranks together over their number."""
    rated = [(each, rate) for each in chosen if (rate := each.trials.gbps()).estimate > 0]
    scales = {(each.nodes, each.tasks_per_node) for each, _ in rated}
    if len(scales) < 2:
        return "measured at one scale only" if scales else NOTHING
    labels = list(dict.fromkeys(each.label for each, _ in rated))
    ceilings = _fastest([(each.ranks, each.ceiling_gbps) for each in chosen if each.ceiling_gbps > 0])
    others = [Line2D([], [], label="ideal, from the fastest", **_IDEAL)]
    others += [Line2D([], [], label="ceiling, all ranks together", **_CEILING)] if ceilings else []
    figure, axes = with_legend(labels, looks, lines=True, others=others)
    tasks = sorted({number for _, number in scales})
    said = []
    for label in labels:
        own, look = [(each, rate) for each, rate in rated if each.label == label], looks[label]
        line = _fastest([(each.ranks, rate.estimate) for each, rate in own])
        axes.plot(list(line), list(line.values()), linestyle=look.line, linewidth=0.8, color=look.colour)
        for each, rate in own:
            size = _SMALLEST_MARK + _LARGER * tasks.index(each.tasks_per_node)
            point(axes, exactly(each.ranks), rate, look, size)
        points = (f"{rate.estimate:.3g} GB/s at {each.nodes}x{each.tasks_per_node}" for each, rate in own)
        said.append(f"{label} {', '.join(points)}")
    best = _fastest([(each.ranks, rate.estimate) for each, rate in rated])
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
    alt = f"Bandwidth by number of ranks, {title}. {'; '.join(said)}." + (f" Ceiling: {roof}." if roof else "")
    return Picture(figure, f"{caption}.", alt)


def _fastest(rates: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The highest rate at each number of ranks, in their order."""
    found: dict[int, float] = {}
    for ranks, rate in sorted(rates):
        found[ranks] = max(rate, found.get(ranks, rate))
    return found


def ranks(chosen: Chosen, looks: Mapping[str, Look], title: str, operation: Operation) -> Result:
    """How long each rank worked by itself, against the one in the middle; the one that was last most often is named."""
    found = [(method.label, each) for method, _ in chosen for each in method.imbalances if each.operation is operation]
    if not found:
        return "no valid operation of several ranks"
    figure, axes = rows([label for label, _ in found], least_lines=2.9)
    said = []
    values = [value for _, each in found for value in each.relative if math.isfinite(value)]
    low, high = min(values, default=1), max(values, default=1)
    low, high = min(low, 1 - _LEAST_SHOWN), max(high, 1 + _LEAST_SHOWN)
    for row, (label, each) in enumerate(found):
        look, count = looks[label], len(each.relative)
        offsets = row - 0.1 + (np.linspace(-0.22, 0.22, count) if count > 1 else np.zeros(1))
        axes.plot([1, 1], [row - 0.38, row + 0.16], color=INK, linewidth=0.8, zorder=1)
        size, alpha = (9, 0.75) if count <= _MANY else (4, 0.4)
        axes.scatter(each.relative, offsets, s=size, alpha=alpha, **scattered(look))
        last = each.last_rank
        words = f"{label}: slowest / median {each.slowest_over_median:.3g}"
        if last.trials:
            place = each.numbers.index(int(last.name))
            x, host = each.relative[place], _short(each.host_of_last)
            name = f"rank {last.name}{host and f' ({host})'}, {last.trials} of {each.trials}"
            axes.scatter([x], [offsets[place]], s=30, facecolors="none", edgecolors=INK, linewidths=0.7)
            side = ("left", 0.01) if x < (low + high) / 2 else ("right", 0.99)
            axes.text(
                side[1], row + 0.21, name, fontsize=5.5, va="top", ha=side[0], transform=axes.get_yaxis_transform()
            )
            words += f", last was {name} trials"
        said.append(words)
    room = 0.05 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{title}:\nown work of a rank / the median rank's")
    caption = (
        f"Ranks ({title}): each point is a rank, from the first at the top of a row to the last: the median over the "
        "trials of its own work, before it waits for the others, over that of the rank in the middle. The circle is "
        "around the rank that ended last most often; below are its host, and in how many trials it was the last."
    )
    return Picture(figure, caption, f"Own work of each rank over the median rank's, {title}. {'; '.join(said)}.")


def _short(host: str) -> str:
    """A host's name without its domain; of a long one both ends, since nodes are told apart by the last digits."""
    name = printable(host).partition(".")[0]
    half = _LONGEST_HOST // 2
    return name if len(name) <= _LONGEST_HOST else f"{name[: half - 1]}…{name[-half:]}"
