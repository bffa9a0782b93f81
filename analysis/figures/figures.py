"""Draws the figures of some results and writes their files: SVG with text as text, PDF with its fonts, PNG.

A figure is as wide as a column of a paper and has one pair of axes, or one per method below each other. The same
results give the same bytes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.errors import ResultsError
from analysis.figures import kinds, scaling
from analysis.figures.axes import INK
from analysis.figures.loop_steps import loop_steps
from analysis.figures.loops import Looped, looped, styles_of_loops
from analysis.figures.lost_parts import lost_parts
from analysis.figures.lost_share import lost_share
from analysis.figures.styles import Style, styles_of
from analysis.figures.targets import targets
from analysis.measures.ceilings import Ceiling
from analysis.measures.method import Method
from analysis.measures.operation import COLD_LOADS, LOADS, LOADS_IN_PLACE, Operation
from analysis.measures.setting import Setting
from analysis.measures.trials import Trials
from analysis.tables.targets import comparable
from ckpt.cli import unwritten

FORMATS = ("svg", "pdf", "png")

_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
"""Without dates and versions, so that the same results give the same files."""

_RC_PARAMS: Any = {
    "svg.hashsalt": "ckpt-study",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a label from a log is no formula
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "legend.fontsize": 6,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "hatch.linewidth": 0.5,
    "savefig.dpi": 300,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "hatch.color"), INK
    ),
}

_LONGEST_NAME = 150


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with what a reader needs beside it."""

    name: str
    """The name for files: letters, digits, dots and dashes."""
    caption: str
    alt: str
    """The content in words, with the numbers, for readers who don't see the figure."""
    setting: Setting | None
    """Where it was measured; None if in several settings."""
    kind: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class Panel:
    """What is drawn: the methods of a setting that measured an operation, with their styles."""

    setting: Setting
    operation: Operation
    measured: tuple[tuple[Method, Trials], ...]
    styles: dict[str, Style]

    @property
    def title(self) -> str:
        """The operation in words."""
        return self.setting.label(self.operation)

    @property
    def ceiling(self) -> Ceiling:
        """The rate that the target reached by itself."""
        return self.setting.ceilings[self.operation.direction]


Drawer = Callable[[Panel], kinds.Result]

_KINDS: dict[str, Drawer] = {
    "trials": lambda panel: kinds.trials(panel.measured, panel.styles, panel.title),
    "ecdf": lambda panel: kinds.ecdf(panel.measured, panel.styles, panel.title),
    "phases": lambda panel: kinds.phases(panel.measured, panel.styles),
    "roofline": lambda panel: kinds.roofline(
        panel.measured, panel.styles, panel.title, panel.ceiling.gbps, panel.ceiling.way
    ),
    "pareto": lambda panel: kinds.pareto(panel.measured, panel.styles, panel.title),
    "drift": lambda panel: kinds.drift(panel.measured, panel.styles, panel.title),
    "ranks": lambda panel: scaling.ranks(panel.measured, panel.styles, panel.title, panel.operation),
}

LOST_SHARE, LOST_PARTS, LOOP_STEPS = "lost-share", "lost-parts", "loop-steps"

_LOOP_KINDS: dict[str, Callable[[Sequence[Looped], int], kinds.Result]] = {
    LOST_SHARE: lambda methods, _: lost_share(methods),
    LOST_PARTS: lambda methods, _: lost_parts(methods),
    LOOP_STEPS: lambda methods, ranks: loop_steps(methods, ranks=ranks),
}


def draw(settings: Sequence[Setting]) -> tuple[list[Drawn], list[str]]:
    """Draw every figure that has data; return the others as messages that say why there is none."""
    drawn: list[Drawn] = []
    absent: list[str] = []
    with mpl.rc_context(_RC_PARAMS):
        _loops([setting for setting in settings if setting.loop], drawn, absent)
        settings = [setting for setting in settings if not setting.loop]
        styles = styles_of(method.label for setting in settings for method in setting.methods)
        for setting in settings:
            for panel in _panels(setting, styles):
                for kind, drawer in _KINDS.items():
                    if _wanted(kind, panel):
                        _add(drawn, absent, kind, panel, drawer(panel))
        for title, together, _ in comparable(settings):
            result = targets(together, styles)
            if isinstance(result, kinds.Picture):
                name = _free_name(drawn, [title, "targets"])
                drawn.append(
                    Drawn(name, f"{result.caption} Study {title}.", result.alt, None, "targets", result.figure)
                )
        for panel, others in _scales(settings, styles):
            _add(drawn, absent, "scale", panel, scaling.scale(others, panel.styles, panel.title))
    return drawn, absent


def _loops(settings: Sequence[Setting], drawn: list[Drawn], absent: list[str]) -> None:
    """Draw the figures of what saves cost training loops; other figures are of trials, which loops don't have."""
    styles = styles_of_loops(settings)
    for setting in settings:
        methods, step = looped(setting, styles), setting.loop.step if setting.loop else ""
        for kind, drawer in _LOOP_KINDS.items():
            result = drawer(methods, setting.ranks)
            if isinstance(result, str):
                absent.append(f"no figure of {kind} ({setting}): {result}")
                continue
            name = _free_name(drawn, [setting.study, setting.target, setting.scale, step, kind])
            caption = f"{result.caption} Study {setting}: {setting.loop}."
            drawn.append(Drawn(name, caption, result.alt, setting, kind, result.figure))


def _wanted(kind: str, panel: Panel) -> bool:
    """Return whether a figure makes sense: loads have no phases, and warm ones no ceiling and no use for sizes."""
    if kind == "ranks" and panel.setting.ranks == 1:
        return False
    if panel.operation is Operation.LOAD_WARM:
        return kind in {"trials", "ranks"}
    return panel.operation is Operation.SAVE or kind != "phases"


def _panels(setting: Setting, styles: dict[str, Style]) -> list[Panel]:
    loads = [load for load in (*LOADS, *LOADS_IN_PLACE) if any(len(method[load]) for method in setting.methods)]
    panels = []
    for operation in (Operation.SAVE, *(loads or [Operation.LOAD_COLD])):
        pairs = ((method, method[operation]) for method in setting.methods)
        panels.append(Panel(setting, operation, tuple(pair for pair in pairs if len(pair[1])), styles))
    return panels


def _scales(settings: Sequence[Setting], styles: dict[str, Style]) -> list[tuple[Panel, list[scaling.AtScale]]]:
    """Collect what the methods measured at all scales, by study, target and what else jobs must agree in."""

    def key(setting: Setting) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        return setting.study, setting.target, tuple(sorted(setting.agreed.items()))

    scales = []
    for shared in dict.fromkeys(map(key, settings)):
        group = [setting for setting in settings if key(setting) == shared]
        for operation in (Operation.SAVE, *COLD_LOADS, *LOADS_IN_PLACE):
            rows = [
                scaling.AtScale(
                    setting.nodes, setting.tasks_per_node, method.label, method[operation],
                    setting.ceilings[operation.direction].gbps,
                )
                for setting in group
                for method in setting.methods
                if len(method[operation])
            ]  # fmt: skip
            if rows or operation is Operation.SAVE:
                scales.append((Panel(group[0], operation, (), styles), rows))
    return scales


def _add(drawn: list[Drawn], absent: list[str], kind: str, panel: Panel, result: kinds.Result) -> None:
    setting = panel.setting
    where = setting.at_all_scales if kind == "scale" else str(setting)
    what = kind if kind == "phases" else f"{kind}, {panel.title}"
    if isinstance(result, str):
        absent.append(f"no figure of {what} ({where}): {result}")
        return
    scale = "" if kind == "scale" else setting.scale
    operation = "" if kind == "phases" else panel.operation.value
    name = _free_name(drawn, [setting.study, setting.target, scale, kind, operation])
    caption = f"{result.caption} Study {where}."
    drawn.append(Drawn(name, caption, result.alt, None if kind == "scale" else setting, kind, result.figure))


def _free_name(drawn: Sequence[Drawn], parts: Sequence[str]) -> str:
    """Return a name for files that no other figure has."""
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(filter(None, parts))).strip("-.")[:_LONGEST_NAME]
    taken = {figure.name for figure in drawn}
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


def save(drawn: Drawn, file_format: str, file: Any) -> None:
    """Write one figure, in one of `FORMATS`, to a path or an open file."""
    with mpl.rc_context(_RC_PARAMS), warnings.catch_warnings():
        # A label may hold what the font lacks; it's shown as a box then.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        transparent = file_format == "svg"
        drawn.figure.savefig(
            file, format=file_format, metadata=_METADATA[file_format], transparent=transparent,
            facecolor="none" if transparent else "white",
        )  # fmt: skip


def write(drawn: Sequence[Drawn], directory: Path) -> None:
    """Write the figures in all formats; create the directory where it doesn't exist.

    Raises:
        ResultsError: if they can't be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for figure in drawn:
            for file_format in FORMATS:
                save(figure, file_format, directory / f"{figure.name}.{file_format}")
    except OSError as error:
        raise ResultsError(unwritten(error, f"figures to {directory}")) from error
