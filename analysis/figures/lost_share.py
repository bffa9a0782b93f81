"""Draws the share of training time that checkpoints cost over the interval between them: one line a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.axes import INK, logarithmic, with_legend
from analysis.figures.kinds import Picture, Result
from analysis.figures.loops import Looped, handles
from analysis.figures.styles import wrapped
from analysis.measures.lost import SIGNIFICANT, AtInterval, meeting_s
from analysis.measures.setting import SYNC
from analysis.measures.statistics import Interval

_BEFORE, _BEYOND = 1.6, 30.0
"""How far lines extend beyond the shortest and the longest interval that counts, as factors."""

_DECADES = 4.5
"""How many powers of ten the upright axis has at most: what is below is nearly nothing."""

_MOST_NAMED = 3
"""With more points where lines meet, their intervals are in the words only."""

_TICK: dict[str, Any] = {
    "color": INK, "marker": "|", "markersize": 8, "markeredgewidth": 1.1, "linestyle": "none", "zorder": 4,
}  # fmt: skip
_RING: dict[str, Any] = {
    "color": INK, "marker": "o", "markersize": 7, "markeredgewidth": 1.1, "markerfacecolor": "none",
    "linestyle": "none", "zorder": 5,
}  # fmt: skip

_CAPTION = (
    "Lost training time: what a save costs the loop, over the interval between saves; at 10 %, training takes 10 % "
    "longer. Points were measured and have their 95 % intervals; one that reaches zero is an arrow down, its point is "
    "at its upper end if the estimate isn't above zero. Lines are the model, one save in flight at a time; the "
    "synchronous ones are solid. Upright ticks: storage's limit, where interval and lost time together are the commit "
    "latency; to the left, a save waits for the one before. Rings: it waits so long that the asynchronous save loses "
    "as much as the synchronous one of its strategy; the legend has that interval, in brackets its 95 % interval."
)


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Where an asynchronous line meets the synchronous one of its strategy."""

    sync: Looped
    other: Looped
    interval: Interval
    """In s."""

    @property
    def interval_s(self) -> float:
        return self.interval.estimate

    @property
    def share(self) -> float:
        return self.sync.cost.share_at(self.interval_s).estimate

    def __str__(self) -> str:
        low, high = self.interval.low, self.interval.high
        between = f" ({low:.2g} to {high:.2g})" if low > 0 else f" (at most {high:.2g})"
        return f"{self.interval_s:.2g} s" + ("" if math.isnan(low + high) else between)


def lost_share(methods: Sequence[Looped]) -> Result:
    """Draw measured points on the lines of the model, and where synchronous and asynchronous lines meet."""
    measured = [(method, at) for method in methods for at in method.cost.at if not math.isnan(at.share.estimate)]
    if not measured:
        return "no valid save beside steps without checkpoints"
    lines = [method for method in methods if method.cost.unhurried.lost.estimate > 0]
    meetings, limits = _meetings(lines), [limit for limit in map(_limit, lines) if limit]
    shown = [method for method in methods if method in lines or any(method is one for one, _ in measured)]
    figure, axes = with_legend([], {}, others=[*handles(shown), *_others(meetings, limits)])
    ends = [at.interval_s for _, at in measured]
    ends += [x for x, _ in limits] + [meeting.interval_s for meeting in meetings]
    ends = [end for end in ends if end > 0]
    intervals_s = np.geomspace(min(ends) / _BEFORE, max(ends) * _BEYOND, 240)
    heights = [height for method in lines for height in _line(axes, method, intervals_s)]
    heights += [height for _, at in measured for height in (at.share.estimate, at.share.high) if height > 0]
    _scales(axes, intervals_s.tolist(), heights)
    for method, at in measured:
        _point(axes, method, at)
    for x, share in limits:
        axes.plot([x], [100 * share], **_TICK)
    for meeting in meetings:
        axes.plot([meeting.interval_s], [100 * meeting.share], **_RING)
    words = ". ".join(_in_words(method, meetings) for method in shown)
    return Picture(figure, _CAPTION, f"Training time lost over the checkpoint interval. {words}.")


def _meetings(lines: Sequence[Looped]) -> list[_Meeting]:
    pairs = [
        _Meeting(sync, other, meeting_s(sync.cost, other.cost))
        for sync in lines
        if sync.cost.way == SYNC
        for other in lines
        if other.strategy == sync.strategy and other is not sync
    ]
    return [pair for pair in pairs if pair.interval_s > 0]


def _limit(method: Looped) -> tuple[float, float] | None:
    """Return the interval in s below which an asynchronous save waits for the one before, and its share there."""
    interval_s = method.cost.shortest_s - method.cost.unhurried.lost.estimate
    return (
        (interval_s, method.cost.share_at(interval_s).estimate) if method.cost.way != SYNC and interval_s > 0 else None
    )


def _others(meetings: Sequence[_Meeting], limits: Sequence[tuple[float, float]]) -> list[Line2D]:
    named = meetings if len(meetings) <= _MOST_NAMED else []
    ring = "\n".join(
        [
            "as much as synchronous" + (":" if named else ""),
            *(line for meeting in named for line in (*wrapped([meeting.other.label]), str(meeting))),
        ]
    )
    return [
        *([Line2D([], [], label="storage's limit: waits", **_TICK)] if limits else []),
        *([Line2D([], [], label=ring, **_RING)] if meetings else []),
    ]


def _line(axes: Axes, method: Looped, intervals_s: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Draw the model of one method with its 95 % band; return its shares."""
    shares = [method.cost.share_at(float(interval_s)) for interval_s in intervals_s]
    low, middle, high = (
        100 * np.array([getattr(share, end) for share in shares]) for end in ("low", "estimate", "high")
    )
    if np.isfinite(low).all():
        axes.fill_between(
            intervals_s, np.maximum(low, 1e-9), high, color=method.style.color, alpha=0.13, linewidth=0
        )  # fmt: skip
    style = method.marks(line=True) | {"marker": "None", "linewidth": 1.5 if method.cost.way == SYNC else 1.1}
    axes.plot(intervals_s, middle, **style)
    return [share.estimate for share in shares]


def _scales(axes: Axes, intervals_s: Sequence[float], heights: Sequence[float]) -> None:
    percent = [100 * height for height in heights] or [1.0]
    logarithmic(axes, "x", intervals_s)
    axes.set_xlim(intervals_s[0], intervals_s[-1])
    logarithmic(axes, "y", [max(min(percent), max(percent) / 10**_DECADES), max(percent)])
    axes.set_xlabel("checkpoint interval [s]")
    axes.set_ylabel("training time lost [%]")


def _point(axes: Axes, method: Looped, at: AtInterval) -> None:
    """Draw what was measured at one interval; an interval that reaches zero, which the axis hasn't, is an arrow."""
    x, bottom = at.interval_s, axes.get_ylim()[0]
    low, estimate, high = (100 * end for end in (at.share.low, at.share.estimate, at.share.high))
    color, shown = method.style.color, estimate if estimate > bottom else high
    if low <= 0 < high:
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, bottom), (x, high), arrowprops=arrow)
    elif low > 0:
        axes.plot([x, x], [max(low, bottom), high], color=color, linewidth=0.9, zorder=3)
    if shown > 0:
        axes.plot([x], [shown], markersize=5, zorder=6, **method.marks())


def _in_words(method: Looped, meetings: Sequence[_Meeting]) -> str:
    points = ", ".join(f"{_percent(at)} every {at.interval_s:.3g} s" for at in method.cost.at)
    words = f"{method.label}: {points}"
    shortest_s = method.cost.shortest_s
    if method.cost.way != SYNC and not math.isnan(shortest_s):
        words += f", commit latency {shortest_s:.3g} s"
    for meeting in meetings:
        if meeting.other is method:
            words += f", as much as {meeting.sync.label} at {meeting}: {100 * meeting.share:.3g} %"
    return words


def _percent(at: AtInterval) -> str:
    low, estimate, high = (100 * end for end in (at.share.low, at.share.estimate, at.share.high))
    if math.isnan(estimate):
        return "unknown"
    between = "" if math.isnan(low) else f" ({low:.3g} to {high:.3g})"
    verdict = at.lost.verdict
    return f"{estimate:.3g} %{between}" + (f", {verdict}," if verdict and verdict != SIGNIFICANT else "")
