"""Draws the steps of a training loop over time: one block a method, with its saves and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.figures.axes import INK, WIDTH_IN, plain, spread, swatch
from analysis.figures.kinds import Picture, Result
from analysis.figures.loops import PARTS, Looped
from analysis.measures.loop import JobLoop, LoopBlock, LoopSave, LoopStep, Part, Reference
from analysis.tables.table import printable

_PANEL_IN, _LEGEND_IN = 0.86, 0.85
"""The heights of one method's axes, and of what is below all of them."""

_LONGEST_TITLE = 60

_GREY = "#808080"

_PIECES: Mapping[str, tuple[str, float]] = {
    "blocked": ("", 0.85), "interference": PARTS[Part.INTERFERENCE], "tail": PARTS[Part.TAIL],
}  # fmt: skip
"""Hatch and opacity of what steps took above the reference."""

_CALL: dict[str, Any] = {"color": INK, "linestyle": "-", "linewidth": 0.7, "marker": "v", "markersize": 3.5}
_COMMIT: dict[str, Any] = {
    "color": INK, "linestyle": (0, (3, 1.5)), "linewidth": 0.7, "marker": "D", "markersize": 3,
    "markerfacecolor": "none", "markeredgewidth": 0.7,
}  # fmt: skip
_INVALID: dict[str, Any] = _CALL | {"marker": "x", "markersize": 4.5}

_CAPTION = (
    "Steps of the training loop over time: of each method the block whose lost time per save is in the middle. A step "
    "is as high as it is long; what exceeds the median step without checkpoints of the same job (the line) was "
    "blocked, or is interference until the commit, or tail after it. The grey band has 95 % of the steps without "
    "checkpoints."
)
_RANKS = " Steps are those of the slowest rank, which all others wait for."


@dataclass(frozen=True, slots=True)
class _Shown:
    """The block that stands for a method."""

    method: Looped
    job: JobLoop
    block: LoopBlock

    @property
    def saves(self) -> list[LoopSave]:
        return [save for save in self.job.saves if save.block == self.block.number]

    @property
    def reference(self) -> Reference:
        return self.job.reference

    @property
    def start_s(self) -> float:
        return self.block.steps[0].start_s


def loop_steps(methods: Sequence[Looped], *, ranks: int) -> Result:
    """Draw the steps of one block per method, below each other, with the calls and commits of its saves."""
    shown = [block for method in methods if (block := _in_the_middle(method))]
    if not shown:
        return "no valid block of steps"
    height = _PANEL_IN * len(shown) + _LEGEND_IN
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, one in zip(panels, shown, strict=True):
        plain(axes)
        _reference(axes, one)
        _steps(axes, one)
        _saves(axes, one)
        axes.set_title("\n".join(_title(one)), loc="left", fontsize=6, pad=5)
    durations_s = [step.duration_s for one in shown for step in one.block.steps]
    spread(panels[0], "y", durations_s, "step [s]")
    figure.supylabel(panels[0].get_ylabel(), fontsize=7)
    panels[0].set_ylabel("")
    if panels[0].get_yscale() == "linear":
        panels[0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        panels[0].set_ylim(bottom=min(durations_s) - 0.1 * (max(durations_s) - min(durations_s)))
    panels[-1].set_xlabel("time since the start of the block [s]")
    panels[-1].xaxis.set_major_locator(MaxNLocator(6))
    panels[-1].set_xlim(0, max(one.block.steps[-1].end_s - one.start_s for one in shown))
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, columnspacing=1.2)
    caption = _CAPTION + (_RANKS if ranks > 1 else "")
    return Picture(figure, caption, f"Step times over time. {'. '.join(map(_in_words, shown))}.")


def _in_the_middle(method: Looped) -> _Shown | None:
    """Choose the block with the median lost time per save, at the longest interval, of those with valid saves."""
    blocks = [
        _Shown(method, job, block)
        for job in method.cost.jobs
        if job.reference.steps
        for block in job.blocks
        if block.valid and block.every and not block.opening and block.steps
    ]
    complete = [one for one in blocks if all(save.valid for save in one.saves)] or blocks
    longest = [one for one in complete if one.block.every == max(other.block.every for other in complete)]
    ordered = sorted(longest, key=_lost_s)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


def _lost_s(one: _Shown) -> tuple[float, str, int]:
    lost_s = [save.lost_s for save in one.saves if not math.isnan(save.lost_s)]
    excess_s = [step.duration_s - one.reference.median_s for step in one.block.measured]
    return fmean(lost_s or excess_s or [0.0]), one.job.job_id, one.block.number


def _reference(axes: Axes, one: _Shown) -> None:
    reference = one.reference
    axes.axhspan(reference.low_s, reference.high_s, color=_GREY, alpha=0.35, linewidth=0, zorder=1)
    axes.axhline(reference.median_s, color=INK, linewidth=0.6, zorder=3)


def _steps(axes: Axes, one: _Shown) -> None:
    """Draw every step as a level, and fill what it took above the reference."""
    for step in one.block.steps:
        for bottom_s, top_s, piece in _pieces(one, step):
            hatch, opacity = _PIECES[piece]
            axes.add_patch(
                Rectangle((step.start_s - one.start_s, bottom_s), step.duration_s, top_s - bottom_s, hatch=hatch,
                          edgecolor=INK, linewidth=0.3, facecolor=(one.method.style.color, opacity), zorder=2)
            )  # fmt: skip
    edges = [step.start_s - one.start_s for step in one.block.steps]
    edges.append(one.block.steps[-1].end_s - one.start_s)
    levels = [step.duration_s for step in one.block.steps]
    axes.step(edges, [*levels, levels[-1]], where="post", color=INK, linewidth=0.6, zorder=3)


def _pieces(one: _Shown, step: LoopStep) -> list[tuple[float, float, str]]:
    """Return from where to where, in s, a step is above the reference, and by what."""
    median_s = one.reference.median_s
    save = next((save for save in one.saves if save.valid and save.step <= step.number < save.end_step), None)
    if save is None or step.duration_s <= median_s:
        return []
    unblocked_s = max(median_s, step.duration_s - step.blocked_s)
    kind = "interference" if step.number <= save.commit_step else "tail"
    pieces = [(median_s, unblocked_s, kind), (unblocked_s, step.duration_s, "blocked")]
    return [piece for piece in pieces if piece[1] > piece[0]]


def _saves(axes: Axes, one: _Shown) -> None:
    """Mark call and commit of every save at the upper edge, with a line down."""
    for save in one.saves:
        called_s = save.called_s - one.start_s
        _mark(axes, called_s, _CALL if save.valid else _INVALID)
        if not math.isnan(save.latency_s):
            _mark(axes, called_s + save.latency_s, _COMMIT)


def _mark(axes: Axes, time_s: float, style: Mapping[str, Any]) -> None:
    axes.plot([time_s] * 2, [0, 1], transform=axes.get_xaxis_transform(), markevery=[1], clip_on=False, zorder=4,
              **style)  # fmt: skip


def _title(one: _Shown) -> list[str]:
    return [_cut(text) for text in (printable(one.method.label), _slowest(one)) if text]


def _cut(text: str) -> str:
    """Shorten a text that doesn't fit above its panel, in the middle: a label ends with the way."""
    half = _LONGEST_TITLE // 2
    return text if len(text) <= _LONGEST_TITLE else f"{text[: half - 1]}…{text[-half:]}"


def _slowest(one: _Shown) -> str:
    """Name the rank that the others waited for in most of the saves; empty if there is none."""
    slow = [save.slow_rank for save in one.saves if save.slow_rank]
    if not slow:
        return ""
    rank, times = min(Counter(slow_rank.rank for slow_rank in slow).items(), key=lambda item: (-item[1], item[0]))
    named = next(slow_rank for slow_rank in slow if slow_rank.rank == rank)
    host = f" ({printable(named.host)})" if named.host else ""
    return f"slowest: rank {rank}{host}, by {named.by}, in {times} of {len(one.saves)} saves"


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D([], [], label="call", **_CALL),
        Line2D([], [], label="commit", **_COMMIT),
        *(swatch(*style, name) for name, style in _PIECES.items()),
        Patch(facecolor=(_GREY, 0.35), edgecolor="none", label="95 % without saves"),
    ]


def _in_words(one: _Shown) -> str:
    reference, durations_s = one.reference, [step.duration_s for step in one.block.steps]
    without = f"{reference.median_s:.3g} s ({reference.low_s:.3g} to {reference.high_s:.3g})"
    steps = f"steps of {min(durations_s):.3g} to {max(durations_s):.3g} s; without checkpoints {without}"
    words = [f"{one.method.label}: {steps}"]
    for save in one.saves:
        reason = "" if save.valid else f" (invalid: {save.reason})"
        tail_s, interference_s = save.parts[Part.TAIL], save.parts[Part.INTERFERENCE]
        words.append(
            f"save called at {save.called_s - one.start_s:.3g} s, committed {save.latency_s:.3g} s later, "
            f"blocked {save.blocked_s:.3g} s, interference {interference_s:.3g} s, tail {tail_s:.3g} s{reason}"
        )
    return "; ".join([*words, *filter(None, [_slowest(one)])])
