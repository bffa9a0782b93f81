"""Gives what figures of training loops share: styles of strategies and ways, hatches of the parts of lost time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D

from analysis.figures.axes import marks
from analysis.figures.styles import Style, styles_of, wrapped
from analysis.measures.loop import Part
from analysis.measures.lost import LoopCost
from analysis.measures.setting import SYNC, Setting

PARTS: Mapping[Part, tuple[str, float]] = {
    Part.WAIT: ("xxxxx", 0.6),
    Part.SNAPSHOT: ("", 1.0),
    Part.CALL: ("/////", 0.6),
    Part.UPDATE_WAIT: ("-----", 0.6),
    Part.INTERFERENCE: ("|||||", 0.25),
    Part.TAIL: ("\\\\\\\\\\", 0.1),
}
"""Hatch and opacity: what holds the loop is stronger than what slows it down."""

_WAYS: Mapping[str, tuple[Any, str]] = {
    SYNC: ("-", "full"),
    "thread": ("--", "none"),
    "process": (":", "left"),
    "library": ("-.", "top"),
    "library-thread": ((0, (6, 1.2)), "bottom"),
    "library-process": ((0, (4, 1, 1, 1, 1, 1)), "right"),
    "checkpointer": ((0, (2, 1)), "full"),
}
"""The line of every way to save, and which part of its marker is filled."""

_OTHER_WAY = (0, (1, 2.5)), "none"


@dataclass(frozen=True, slots=True)
class Looped:
    """A method with what it costs the training loop."""

    label: str
    cost: LoopCost
    style: Style
    """Of the strategy, whatever the way: in other figures it has the same."""

    @property
    def strategy(self) -> str:
        """The label without the way."""
        return strategy_of(self.label, self.cost.way)

    def marks(self, *, line: bool = False) -> dict[str, Any]:
        """Return the arguments of `plot`: colour and marker are the strategy's, the line and filling the way's."""
        dashes, filled = _WAYS.get(self.cost.way, _OTHER_WAY)
        return marks(self.style) | {
            "linestyle": dashes if line else "none",
            "fillstyle": filled,
            "markerfacecolor": "none" if filled == "none" else self.style.color,
            "markerfacecoloralt": "none",
        }


def strategy_of(label: str, way: str) -> str:
    """Return a method's label without the way, which is its last option."""
    return label.removesuffix(f"+way={way}")


def looped(setting: Setting, styles: Mapping[str, Style]) -> list[Looped]:
    """Return the methods of a setting that left a log of a loop; `styles` are those of the strategies."""
    return [
        Looped(method.label, method.loop, styles[strategy_of(method.label, method.loop.way)])
        for method in setting.methods
        if method.loop
    ]


def styles_of_loops(settings: Sequence[Setting]) -> dict[str, Style]:
    """Assign a style to every strategy that saved in a loop."""
    methods = [method for setting in settings for method in setting.methods]
    return styles_of(strategy_of(method.label, method.loop.way) for method in methods if method.loop)


def handles(methods: Sequence[Looped]) -> list[Line2D]:
    """Return the legend's entries of methods, as lines with their markers."""
    texts = wrapped([method.label for method in methods])
    return [
        Line2D([], [], markersize=4, label=text, **method.marks(line=True))
        for method, text in zip(methods, texts, strict=True)
    ]
