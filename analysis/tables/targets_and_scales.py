"""Makes the tables across comparisons: targets side by side, scales, and means over all comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from analysis.logs.claims import PROVEN
from analysis.measures.comparison import Comparison, Relative, related
from analysis.measures.differences import differences
from analysis.measures.groups import MUST_AGREE
from analysis.measures.method import Method
from analysis.measures.operation import COLD_LOADS, Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import UNKNOWN, Interval, geometric_mean
from analysis.tables.methods import HOW_MEASURED, notes_on_tests, repeated, shown_operations
from analysis.tables.table import Cell, Estimate, Marked, Number, Part, Ratio, Share, Table

HOW_SCALED = (
    "bandwidth of all ranks together: bytes over the median time, from the first start to the last end, with its 95 % "
    "bootstrap interval; efficiency: the bandwidth of a rank over that at the smallest scale at which the method was "
    "measured, within rounds and with Student's 95 % interval over them: as the state stays the same (strong scaling), "
    "the speedup over the ratio of ranks; the ceiling is what all ranks of the same jobs wrote and read at the same "
    "time"
)

_MAY_DIFFER_BETWEEN_TARGETS = {"cold_loads", "durability"}
"""What can be proven on one filesystem and not on another: loads are then listed in different rows, saves marked."""


def across_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return the tables that need several comparisons; an empty list for a single one."""
    settings = [comparison.setting for comparison in comparisons]
    return [*_targets(settings), *_scales(settings), *_means(comparisons)]


def _labels(settings: Sequence[Setting]) -> list[str]:
    """Return the labels of all methods without repetition."""
    return list(dict.fromkeys(method.label for setting in settings for method in setting.methods))


def _methods(settings: Sequence[Setting]) -> list[Method]:
    return [method for setting in settings for method in setting.methods]


def _targets(settings: Sequence[Setting]) -> Iterator[Table]:
    def key(setting: Setting) -> tuple[str, int, int]:
        return setting.study, setting.nodes, setting.tasks_per_node

    for (study, nodes, tasks), members in itertools.groupby(sorted(settings, key=key), key=key):
        group = list(members)
        if len({setting.target for setting in group}) > 1:
            yield _targets_table(f"{study}, {nodes}x{tasks}", group)


def _targets_table(title: str, group: Sequence[Setting]) -> Table:
    """Compare every target with the first, in settings that agree in everything else."""
    together, left_out = _agreeing(group)
    relatives = _relatives_to_first(together)
    against = [{label: relatives[target, label] for target, label in relatives if target == other.target}
               for other in together[1:]]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    unproven = [
        f"to {setting.target} saves are committed, and not proven durable: {setting.durability}"
        for setting in together
        if setting.durability != PROVEN
    ]
    footnotes: list[str] = []
    for operation in shown_operations(_methods(together)):
        for label in _labels(together):
            methods = [setting.method(label) for setting in together]
            marked = unproven if operation is Operation.SAVE else []
            if _proven_on_some_only(methods, operation):
                marked = ["loads are compared only where the same is known of their coldness"]
            footnotes += [note for note in marked if note not in footnotes]
            mark = tuple(footnotes.index(note) + 1 for note in marked)
            medians = (method[operation] if method else "-" for method in methods)
            ratios = (_ratio(relatives.get((other.target, label)), operation) for other in together[1:])
            rows.append((Marked(label, mark), operation.label, *medians, *ratios))
        means = (
            geometric_mean([relative.operations[operation].ratio.estimate for relative in of_target.values()])
            for of_target in against
        )
        rows.append(("geometric mean", operation.label, *("" for _ in together), *(Number(mean) for mean in means)))
    names = [setting.target for setting in together]
    headings = (
        "method", "operation", *(f"{target} [s]" for target in names), *(f"{name} / {names[0]}" for name in names[1:]),
    )  # fmt: skip
    on_tests = dict.fromkeys(note for of_target in against for note in notes_on_tests(of_target.values()))
    notes = (HOW_MEASURED, *on_tests, *left_out)
    return Table("targets", f"Targets: {title}", headings, tuple(rows), notes, tuple(footnotes))


def _relatives_to_first(settings: Sequence[Setting]) -> dict[tuple[str, str], Relative]:
    """Compare the methods on other targets with the same methods on the first, by target and label."""
    first, *others = settings
    pairs = {
        (setting.target, method.label): (method, base)
        for setting in others
        for method in setting.methods
        if (base := first.method(method.label))
    }
    return dict(zip(pairs, related(list(pairs.values()), _methods(settings)), strict=True))


def _proven_on_some_only(methods: Sequence[Method | None], operation: Operation) -> bool:
    """Return whether different things are known of loads on the targets; false for saves and warm loads."""
    kinds = {kind for method in methods if method for kind in COLD_LOADS if len(method[kind])}
    return operation in kinds and len(kinds) > 1


def _ratio(relative: Relative | None, operation: Operation) -> Cell:
    if relative is None:
        return "-"
    difference = relative.operations[operation]
    return Ratio(difference.ratio, difference.verdict(), difference.corrected_p)


def _agreeing(group: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Choose the largest set of settings that agree, one per target, and note which ones are left out."""
    keys = [key for key in MUST_AGREE if key not in _MAY_DIFFER_BETWEEN_TARGETS]

    def agreed(setting: Setting) -> tuple[str | None, ...]:
        return tuple(setting.agreed.get(key) for key in keys)

    sets: dict[tuple[str | None, ...], dict[str, Setting]] = {}
    for setting in group:
        sets.setdefault(agreed(setting), {}).setdefault(setting.target, setting)
    chosen, together = max(sets.items(), key=lambda item: len(item[1]))
    notes = []
    for setting in group:
        if not any(setting is member for member in together.values()):
            differing = [MUST_AGREE[key] for key, a, b in zip(keys, agreed(setting), chosen, strict=True) if a != b]
            why = f"it differs in {', '.join(differing)}" if differing else "other jobs of the target are compared"
            notes.append(f"left out: {setting}: {why}")
    return list(together.values()), notes


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
