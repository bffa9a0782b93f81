"""Draws the targets of a study side by side: save and load of every method in GB/s, with the ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from analysis.figures.axes import INK, labelled_rows, logarithmic, marks
from analysis.figures.kinds import NOTHING, Picture, Result
from analysis.figures.styles import Style
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import Interval
from analysis.tables.targets import coldest_load

_SPREAD = 0.3
"""How far from the middle of a row the first and the last method are drawn."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What one target does in one operation."""

    label: str
    target: str
    kinds: str
    rates: Mapping[str, Interval]
    """Label of a method -> GB/s."""
    ceiling_gbps: float


def targets(settings: Sequence[Setting], styles: Mapping[str, Style]) -> Result:
    """Draw two rows per target, save and load; a point is a method, and the upright line the target by itself."""
    rows = [row for setting in settings for row in (_saves(setting), _loads(setting))]
    rates = [rate for row in rows for rate in row.rates.values()]
    if not rates:
        return NOTHING
    labels = list(dict.fromkeys(label for row in rows for label in row.rates))
    ceiling = Line2D(
        [], [], color=INK, marker="|", markersize=9, markeredgewidth=1.6, linestyle="none", label="ceiling"
    )
    figure, axes = labelled_rows([row.label for row in rows], labels, styles, [ceiling])
    step = 2 * _SPREAD / max(1, len(labels) - 1)
    for position, row in enumerate(rows):
        if row.ceiling_gbps > 0:
            axes.plot([row.ceiling_gbps] * 2, [position - 0.42, position + 0.42], color=INK, linewidth=1.6)
        for label, rate in row.rates.items():
            y = position - _SPREAD + step * labels.index(label)
            if not math.isnan(rate.low):
                axes.plot([rate.low, rate.high], [y, y], color=styles[label].color, linewidth=0.8)
            axes.plot([rate.estimate], [y], markersize=3.5, **marks(styles[label]))
        if position % 2 and position + 1 < len(rows):
            axes.axhline(position + 0.5, color=INK, linewidth=0.4, alpha=0.5)
    ends = [end for rate in rates for end in (rate.low, rate.estimate, rate.high) if end > 0]
    logarithmic(axes, "x", [*ends, *(row.ceiling_gbps for row in rows if row.ceiling_gbps > 0)])
    axes.set_xlabel("GB/s")
    unlike = len({row.kinds for row in rows[1::2] if row.kinds}) > 1
    caption = (
        "Targets: bandwidth of each method with its 95 % interval, saves and loads; the upright lines are what the "
        "target did by itself in the same jobs, by direct or buffered I/O, whichever was faster."
        + (" Loads of different kinds stand side by side: part of a difference may be a cache." if unlike else "")
    )
    return Picture(figure, caption, f"Save and load by target, in GB/s. {'. '.join(map(_in_words, rows))}.")


def _saves(setting: Setting) -> _Row:
    rates = {method.label: method[Operation.SAVE].gbps() for method in setting.methods}
    return _row(setting, "save", "", rates, setting.ceilings["write"].gbps)


def _loads(setting: Setting) -> _Row:
    loads = {method.label: coldest_load(method) for method in setting.methods}
    kinds = ", ".join(sorted({load.kind.cache for load in loads.values() if load.kind}))
    rates = {label: load.trials.gbps() for label, load in loads.items()}
    return _row(setting, f"load, {kinds}" if kinds else "load", kinds, rates, setting.ceilings["read"].gbps)


def _row(setting: Setting, what: str, kinds: str, rates: Mapping[str, Interval], ceiling_gbps: float) -> _Row:
    known = {label: rate for label, rate in rates.items() if rate.estimate > 0}
    return _Row(f"{setting.target}\n{what}", setting.target, kinds, known, ceiling_gbps)


def _in_words(row: _Row) -> str:
    what = row.label.partition("\n")[2]
    rates = ", ".join(f"{label} {rate.estimate:.3g}" for label, rate in row.rates.items()) or "nothing measured"
    roof = f", ceiling {row.ceiling_gbps:.3g}" if row.ceiling_gbps > 0 else ""
    return f"{row.target}, {what}: {rates}{roof}"
