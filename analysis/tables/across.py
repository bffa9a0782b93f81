"""Makes the tables across comparisons: scales, and means over all comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from analysis.measures.comparison import Comparison
from analysis.measures.differences import differences
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import UNKNOWN, Interval, geometric_mean
from analysis.tables.methods import repeated, shown_operations
from analysis.tables.table import Cell, Estimate, Marked, Number, Part, Share, Table

HOW_SCALED = (
    "bandwidth of all ranks together: bytes over the median time, from the first start to the last end, with its 95 % "
    "bootstrap interval; efficiency: the bandwidth of a rank over that at the smallest scale at which the method was "
    "measured, within rounds and with Student's 95 % interval over them: as the state stays the same (strong scaling), "
    "the speedup over the ratio of ranks; the ceiling is what all ranks of the same jobs wrote and read at the same "
    "time"
)


def across_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return the tables that need several comparisons; an empty list for a single one."""
    timed = [comparison for comparison in comparisons if comparison.setting.loop is None]
    return [*_scales([comparison.setting for comparison in timed]), *_means(timed)]


def _labels(settings: Sequence[Setting]) -> list[str]:
    """Return the labels of all methods without repetition."""
    return list(dict.fromkeys(method.label for setting in settings for method in setting.methods))


def _methods(settings: Sequence[Setting]) -> list[Method]:
    return [method for setting in settings for method in setting.methods]


def _scales(settings: Sequence[Setting]) -> Iterator[Table]:
    def key(setting: Setting) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        return setting.study, setting.target, tuple(sorted(setting.agreed.items()))

    for (_, _, agreed), members in itertools.groupby(sorted(settings, key=key), key=key):
        group = sorted(members, key=lambda setting: (setting.ranks, setting.nodes))
        if len({setting.scale for setting in group}) > 1:
            named = next((setting for setting in group if setting.apart), group[0])
            yield _scales_table(named.at_all_scales, group, dict(agreed))


def _scales_table(title: str, group: Sequence[Setting], agreed: Mapping[str, str]) -> Table:
    methods = _methods(group)
    columns = {operation: _scaled(group, operation) for operation in shown_operations(methods)}
    columns = {operation: cells for operation, cells in columns.items() if cells}
    rows: list[tuple[Cell, ...]] = [
        (
            label,
            Number(setting.nodes, 0),
            Number(setting.tasks_per_node, 0),
            Number(setting.ranks, 0),
            *(cell for cells in columns.values() for cell in cells[label, setting.scale]),
        )
        for label in _labels(group)
        for setting in group
        if setting.method(label)
    ]
    headings = ["method", "nodes", "tasks per node", "ranks"]
    for operation in columns:
        named = group[0].label(operation)
        headings += [f"{named} [GB/s]", f"{named}, efficiency"]
        headings += [f"{named}, of ceiling"] if operation is not Operation.LOAD_WARM else []
    notes = [HOW_SCALED, *repeated(methods)]
    if agreed.get("state_sharding"):
        notes.insert(0, f"how ranks share the state: {agreed['state_sharding']}")
    return Table("scaling", f"Scaling: {title}", tuple(headings), tuple(rows), tuple(notes))


def _scaled(group: Sequence[Setting], operation: Operation) -> dict[tuple[str, str], tuple[Cell, ...]]:
    """Return bandwidth, efficiency and part of the ceiling, by method and scale; empty if nothing was measured."""
    cells: dict[tuple[str, str], tuple[Cell, ...]] = {}
    measured = False
    for label in _labels(group):
        scales = [(setting, method) for setting in group if (method := setting.method(label))]
        base = next(((setting, method) for setting, method in scales if len(method[operation])), None)
        measured |= base is not None
        for setting, method in scales:
            rate = method[operation].gbps()
            efficiency = _efficiency((setting, method), base, operation) if base else UNKNOWN
            of_ceiling = (Part(rate.estimate / method.ceilings[operation.direction].gbps),)
            shown = of_ceiling if operation is not Operation.LOAD_WARM else ()
            cells[label, setting.scale] = (Estimate(rate, 3), Estimate(efficiency), *shown)
    return cells if measured else {}


def _efficiency(scaled: tuple[Setting, Method], base: tuple[Setting, Method], operation: Operation) -> Interval:
    """Divide the bandwidth of a rank by that of a rank at the base scale; at the base itself it is exactly 1."""
    if scaled[1] is base[1]:
        return Interval(1.0, math.nan, math.nan)
    trials, base_trials = scaled[1][operation], base[1][operation]
    speedup = differences([(base_trials, trials)])[0].ratio
    more = trials.moved_bytes / base_trials.moved_bytes * base[0].ranks / scaled[0].ranks
    return Interval(more * speedup.estimate, more * speedup.low, more * speedup.high)


def _means(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """Average the methods' ratios to the reference geometrically, over all comparisons that have the reference."""
    group = [comparison for comparison in comparisons if comparison.differences]
    if len(group) < 2:
        return
    reference, settings = group[0].reference, [comparison.setting for comparison in group]
    operations = shown_operations(method for method in _methods(settings) if method.label != reference)
    rows: list[tuple[Cell, ...]] = []
    incomplete: list[str] = []
    for label in _labels(settings):
        if label == reference:
            continue
        relatives = [comparison.differences[label] for comparison in group if label in comparison.differences]
        absent = len(group) - len(relatives)
        if absent:
            incomplete.append(f"{label} is not among the methods of {absent} of them")
        ratios = [[relative.operations[operation].ratio.estimate for relative in relatives] for operation in operations]
        ratios.append([relative.size for relative in relatives])
        means = (math.nan if absent else geometric_mean(values) for values in ratios)
        rows.append((Marked(label, (len(incomplete),) if absent else ()), *(Share(mean - 1) for mean in means)))
    headings = ("method", *(operation.label for operation in operations), "size")
    over = "; ".join(map(str, settings))
    notes = (f"geometric means of the ratios of medians, over: {over}", "`-` where a ratio is unknown in one of them")
    title = f"Relative to {reference}, over {len(group)} comparisons"
    yield Table("overall", title, headings, tuple(rows), notes, tuple(incomplete))
