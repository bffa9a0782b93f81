"""Draws what the lost time of a save consists of: one bar a method and interval, one piece a part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures.axes import INK, rows, swatch
from analysis.figures.kinds import Picture, Result
from analysis.figures.loops import PARTS, Looped
from analysis.measures.loop import Part
from analysis.measures.lost import SIGNIFICANT, AtInterval

_CAPTION = (
    "Parts of the lost time of a save, stacked: means of the third of the saves in the middle by lost time, since "
    "medians of parts don't add up; below zero where steps were shorter than without checkpoints. The strong ones hold "
    "the loop: wait (for the save before), snapshot, call, update wait (of the optimizer). The faint ones slow it "
    "down: interference until the commit, tail after it. The upright line is the median of the whole, the flat one its "
    "95 % interval."
)


def lost_parts(methods: Sequence[Looped]) -> Result:
    """Draw one bar per method and interval."""
    chosen = [(method, at) for method in methods for at in method.cost.at if not math.isnan(at.lost.interval.estimate)]
    if not chosen:
        return "no valid save beside steps without checkpoints"
    several = len({at.every for _, at in chosen}) > 1
    labels = [f"{method.label}+every {at.every} steps" if several else method.label for method, at in chosen]
    figure, axes = rows(labels, extra_lines=3.5, least_lines=2.2)
    ends, summaries = [0.0], []
    for row, (method, at) in enumerate(chosen):
        means = _means(method, at)
        bar = _bar(axes, row, method, means)
        ends += [*bar, *_whole(axes, row, at, max(bar))]
        parts = ", ".join(f"{part.value} {seconds:.3g} s" for part, seconds in means.items())
        summaries.append(f"{method.label}, every {at.interval_s:.3g} s: {_total(at)}; {parts}")
    low, high = min(ends), max(ends)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_xlim(low - 0.04 * (high - low) if low < 0 else 0, high + 0.34 * (high - low) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("lost per save [s]")
    swatches = [swatch(*PARTS[part], part.value) for part in Part]
    figure.legend(handles=swatches, loc="outside lower center", ncols=3, frameon=False)
    return Picture(figure, _CAPTION, f"Lost time per save with its parts. {'. '.join(summaries)}.")


def _means(method: Looped, at: AtInterval) -> Mapping[Part, float]:
    """Return the mean of every part over the middle third of the saves; without saves, what stands for them."""
    saves = [
        save
        for job in method.cost.jobs
        if job.reference.steps
        for save in job.saves
        if save.valid and not save.opening and save.every == at.every
    ]
    if not saves:
        return {part: at.parts[part].interval.estimate for part in Part}
    saves.sort(key=lambda save: save.lost_s)
    middle = saves[len(saves) // 3 : len(saves) - len(saves) // 3]
    return {part: fmean(save.parts[part] for save in middle) for part in Part}


def _bar(axes: Axes, row: int, method: Looped, means: Mapping[Part, float]) -> tuple[float, float]:
    """Stack what is above zero to the right and what is below to the left; return both ends."""
    left = right = 0.0
    for part, seconds in means.items():
        hatch, opacity = PARTS[part]
        start = right if seconds >= 0 else left
        axes.barh(row, seconds, 0.62, start, hatch=hatch, edgecolor=INK, linewidth=0.4,
                  facecolor=(method.style.color, opacity))  # fmt: skip
        right, left = right + max(0.0, seconds), left + min(0.0, seconds)
    return left, right


def _whole(axes: Axes, row: int, at: AtInterval, reach: float) -> tuple[float, ...]:
    """Draw median and interval of the lost time, and write it beside a bar that ends at `reach`; return its ends."""
    whole = at.lost.interval
    ends = [end for end in (whole.low, whole.estimate, whole.high) if not math.isnan(end)]
    axes.plot([whole.estimate] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.4, solid_capstyle="butt")
    axes.plot([min(ends), max(ends)], [row, row], color=INK, linewidth=0.9)
    axes.annotate(_total(at).replace(", ", "\n"), (max(reach, *ends), row), xytext=(3, 0),
                  textcoords="offset points", va="center", fontsize=6)  # fmt: skip
    return tuple(ends)


def _total(at: AtInterval) -> str:
    verdict = at.lost.verdict
    return f"{at.lost.interval.estimate:.3g} s" + (f", {verdict}" if verdict and verdict != SIGNIFICANT else "")
