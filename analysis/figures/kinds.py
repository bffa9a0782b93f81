"""Draws every kind of figure: from trials and styles to one pair of axes, a caption and the content in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.axes import INK, logarithmic, marks, point, rows, scattered, spread, swatch, with_legend
from analysis.figures.styles import Style
from analysis.measures.method import Method
from analysis.measures.statistics import Interval, exactly
from analysis.measures.trials import Trials

_PHASES = (("", 1.0), ("////", 0.55), ("\\\\\\\\", 0.25))
"""Hatch and opacity of a save's first, second and third phase; later ones repeat the last."""

Chosen = Sequence[tuple[Method, Trials]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its caption, and its content in words."""

    figure: Figure
    caption: str
    alt: str


Result = Picture | str
"""A picture, or a message that says why there is none."""

NOTHING = "no valid trial"


def trials(chosen: Chosen, styles: Mapping[str, Style], title: str) -> Result:
    """Draw every trial as a point, with median and interval."""
    if not chosen:
        return NOTHING
    figure, axes = rows([method.label for method, _ in chosen])
    summaries = []
    for row, (method, measured) in enumerate(chosen):
        style, median = styles[method.label], measured.median()
        # Spread over the row in the order of time, so that equal values stay visible.
        offsets = np.linspace(-0.28, 0.28, len(measured)) if len(measured) > 1 else np.zeros(1)
        axes.scatter(measured.durations_s, row + offsets, s=9, alpha=0.75, **scattered(style))
        axes.plot([median.estimate] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.4, solid_capstyle="butt")
        if not math.isnan(median.low):
            axes.plot([median.low, median.high], [row, row], color=INK, linewidth=0.9)
        summaries.append(f"{method.label} {_interval(median)} s, {len(measured)} trials")
    spread(axes, "x", [value for _, measured in chosen for value in measured.durations_s], f"{title} [s]")
    caption = f"Trials ({title}): each point is one, upright lines are medians, flat ones their 95 % intervals."
    return Picture(figure, caption, f"Duration of each trial, {title}. Medians: {'; '.join(summaries)}.")


def ecdf(chosen: Chosen, styles: Mapping[str, Style], title: str) -> Result:
    """Draw the share of trials that took at most so long."""
    if not chosen:
        return NOTHING
    if max(len(measured) for _, measured in chosen) < 2:
        return "a distribution needs two valid trials of a method"
    figure, axes = with_legend([method.label for method, _ in chosen], styles, lines=True)
    for method, measured in chosen:
        values, style = np.sort(measured.durations_s), styles[method.label]
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.step(np.r_[values[0], values], np.r_[0, shares], where="post", color=style.color, linestyle=style.line)
        axes.plot(values, shares, markersize=3, **marks(style))
    axes.set_ylim(0, 1.04)
    axes.set_ylabel("share of trials")
    spread(axes, "x", [value for _, measured in chosen for value in measured.durations_s], f"{title} [s]")
    slowest = "; ".join(f"{m.label} {min(t.durations_s):.3g} to {max(t.durations_s):.3g} s" for m, t in chosen)
    caption = f"Distribution ({title}): the share of trials that took at most so long."
    return Picture(figure, caption, f"Cumulative distribution of {title}. Fastest and slowest trials: {slowest}.")


def phases(chosen: Chosen, styles: Mapping[str, Style]) -> Result:
    """Draw what a save spends its time on, one bar per method."""
    chosen = [(method, measured) for method, measured in chosen if method.phases]
    names = list(dict.fromkeys(name for method, _ in chosen for name in method.phases))
    if not names:
        return "no save was measured in phases"
    figure, axes = rows([method.label for method, _ in chosen], extra_lines=2)
    summaries = []
    widest = 0.0
    for row, (method, _) in enumerate(chosen):
        left = 0.0
        for number, name in enumerate(names):
            seconds = _mean(method.phases.get(name))
            hatch, alpha = _PHASES[min(number, len(_PHASES) - 1)]
            axes.barh(row, seconds, 0.7, left, hatch=hatch, edgecolor=INK, linewidth=0.4,
                      facecolor=(styles[method.label].color, alpha))  # fmt: skip
            left += seconds
        axes.text(left, row, f" {left:.3g} s", va="center", fontsize=6)
        widest = max(widest, left)
        parts = ", ".join(f"{name} {_mean(method.phases.get(name)):.3g} s" for name in names)
        summaries.append(f"{method.label}: {parts}")
    axes.set_xlim(0, widest * 1.22 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("save, mean of trials [s]")
    handles = [swatch(*_PHASES[min(number, len(_PHASES) - 1)], name) for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    caption = "Phases of a save, stacked: means, since medians of parts don't add up to the median of the whole."
    return Picture(figure, caption, f"Mean duration of each phase of a save. {'; '.join(summaries)}.")


def roofline(chosen: Chosen, styles: Mapping[str, Style], title: str, ceiling_gbps: float, way: str) -> Result:
    """Draw bandwidth over the size of the files, below the bandwidth of the target by itself."""
    if math.isnan(ceiling_gbps):
        return "the ceiling of the target was not measured"
    points = [(m, t.gbps()) for m, t in chosen if m.files.mean_file_bytes > 0 and t.median().estimate > 0]
    if not points:
        return NOTHING
    figure, axes = with_legend([m.label for m, _ in points], styles)
    axes.axhline(ceiling_gbps, color=INK, linewidth=1.2)
    roof = f"{ceiling_gbps:.3g} GB/s" + (f", {way}" if way else "")
    axes.annotate(f"ceiling {roof}", (0.01, ceiling_gbps), xycoords=("axes fraction", "data"),
                  xytext=(0, 2), textcoords="offset points", fontsize=6)  # fmt: skip
    for method, rate in points:
        point(axes, exactly(method.files.mean_file_bytes / 2**20), rate, styles[method.label])
    logarithmic(axes, "x", [m.files.mean_file_bytes / 2**20 for m, _ in points])
    logarithmic(axes, "y", [ceiling_gbps, *(rate.estimate for _, rate in points)])
    axes.set_xlabel("mean size of a file [MiB]")
    axes.set_ylabel(f"{title} [GB/s]")
    summary = "; ".join(f"{m.label} {r.estimate:.3g} GB/s, {r.estimate / ceiling_gbps:.0%}" for m, r in points)
    caption = (
        f"Roofline ({title}): bandwidth with its 95 % interval, over the size of the files; the line is what the "
        "target did by itself in the same jobs, by direct or buffered I/O, whichever was faster. A small state, still "
        "in a cache, may be above it."
    )
    return Picture(figure, caption, f"Ceiling {roof}. {title} and share of the ceiling: {summary}.")


def pareto(chosen: Chosen, styles: Mapping[str, Style], title: str) -> Result:
    """Draw size on disk against time, and the front: the methods that no other beats in both."""
    points = [
        (method, method.files.size_bytes / 2**30, t.median()) for method, t in chosen if method.files.size_bytes > 0
    ]
    if not points:
        return "no size on disk with a valid trial"
    figure, axes = with_legend([method.label for method, _, _ in points], styles)
    front = pareto_front([(size, time.estimate) for _, size, time in points])
    edge = sorted((points[i][2].estimate, points[i][1]) for i in front)
    axes.step(*zip(*edge, strict=True), where="post", color=INK, linewidth=0.8, linestyle=":", label="front")
    for method, size, time in points:
        point(axes, time, exactly(size), styles[method.label])
    spread(axes, "x", [time.estimate for _, _, time in points], f"{title} [s]")
    axes.set_ylim(0, max(size for _, size, _ in points) * 1.15)
    axes.set_ylabel("size on disk [GiB]")
    summary = "; ".join(f"{m.label} {size:.3g} GiB, {time.estimate:.3g} s" for m, size, time in points)
    best = ", ".join(points[i][0].label for i in front)
    caption = f"Size and time ({title}): the dotted line joins what no other method beats in both."
    return Picture(figure, caption, f"Size on disk and median {title}. {summary}. Not beaten in both: {best}.")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other is at least as small in both as, and smaller in one."""
    return [i for i, (x, y) in enumerate(points) if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)]


def drift(chosen: Chosen, styles: Mapping[str, Style], title: str) -> Result:
    """Draw every trial at the time when it ran."""
    if not chosen:
        return NOTHING
    figure, axes = with_legend([method.label for method, _ in chosen], styles, lines=True)
    zero = min(measured.started_s[0] for _, measured in chosen)
    for method, measured in chosen:
        style = styles[method.label]
        minutes = [(started - zero) / 60 for started in measured.started_s]
        axes.plot(minutes, measured.durations_s, linewidth=0.5, markersize=3, **marks(style, line=True))
    axes.set_xlabel("time since the first trial [min]")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    spread(
        axes,
        "y",
        [value for _, measured in chosen for value in measured.durations_s],
        f"{title} [s]".replace(", ", ",\n"),
    )
    changes = "; ".join(f"{m.label} first {t.durations_s[0]:.3g} s, last {t.durations_s[-1]:.3g} s" for m, t in chosen)
    caption = f"Trials in order of time ({title}): a slope or a step is a machine that changed meanwhile."
    return Picture(figure, caption, f"Duration of each trial over time, {title}. {changes}.")


def _mean(measured: Trials | None) -> float:
    return float(np.mean(measured.durations_s)) if measured else 0.0


def _interval(value: Interval) -> str:
    between = "" if math.isnan(value.low) else f" ({value.low:.3g} to {value.high:.3g})"
    return f"{value.estimate:.3g}{between}"
