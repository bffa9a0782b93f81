"""What the tables across comparisons hold: targets against each other, scales, and means over all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from analysis.measures.comparison import Comparison
from analysis.measures.differences import differences
from analysis.measures.groups import MUST_AGREE
from analysis.measures.method import Method
from analysis.measures.relative import OPERATIONS, mean_ratios, related, timed
from analysis.measures.statistics import UNKNOWN, Interval, geometric_mean
from analysis.tables.methods import HOW_MEASURED, notes_on_tests, repeated, shown_operations, where
from analysis.tables.table import Cell, Estimate, Marked, Number, Part, Ratio, Share, Table

HOW_SCALED = (
    "bandwidth of all ranks together: bytes over the median time, from the first start to the last end, with its 95 % "
    "bootstrap interval; efficiency: the bandwidth of a rank over that at the smallest scale at which the method was "
    "measured, within rounds and with Student's 95 % interval over them: as the state stays the same (strong scaling), "
    "the speedup over the ratio of ranks; the ceiling is what all ranks of the same jobs wrote and read at the same "
    "time"
)

_MAY_DIFFER_BETWEEN_TARGETS = {"cold_loads"}
"""Filesystems with caches of their own have no proven cold loads: the loads then stand in different rows."""


def across_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """The tables that need several comparisons; none where there is only one."""
    return [*_targets(comparisons), *_scales(comparisons), *_means(comparisons)]


def _targets(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    def of(each: Comparison) -> tuple[str, int, int]:
        return each.study, each.nodes, each.tasks_per_node

    for (study, nodes, tasks), found in itertools.groupby(sorted(comparisons, key=of), key=of):
        group = list(found)
        if len({each.target for each in group}) > 1:
            yield _of_targets(f"{study}, {nodes}x{tasks}", group)


def _of_targets(title: str, group: Sequence[Comparison]) -> Table:
    """Every target against the first, of comparisons that agree in everything else."""
    together, left_out = _agreeing(group)
    first, *others = together
    names = [each.target for each in together]
    rows: list[tuple[Cell, ...]] = []
    unproven_apart = False
    operations = shown_operations(tuple(method for each in together for method in each.methods))
    pairs = [(method, base) for each in others for method in each.methods if (base := first.method(method.label))]
    found_all = iter(related(pairs, [method for each in together for method in each.methods]))
    against = [
        {method.label: next(found_all) for method in each.methods if first.method(method.label)} for each in others
    ]
    for name in operations:
        for label in dict.fromkeys(method.label for each in together for method in each.methods):
            found = [each.method(label) for each in together]
            ratios: list[Cell] = [
                Ratio(each.ratio, each.verdict(), each.corrected_p)
                if (each := relatives[label].difference(name) if label in relatives else None)
                else "-"
                for relatives in against
            ]
            kinds = {
                kind
                for method in found
                if method
                for kind in ("load_cold", "load_unproven")
                if timed(method, kind).count
            }
            apart = name in kinds and len(kinds) > 1
            unproven_apart |= apart
            medians = (timed(method, name) if method else "-" for method in found)
            rows.append((Marked(label, (1,) if apart else ()), OPERATIONS[name], *medians, *ratios))
        means = [
            geometric_mean([each.difference(name).ratio.estimate for each in relatives.values()])
            for relatives in against
        ]
        rows.append(("geometric mean", OPERATIONS[name], *("" for _ in together), *(Number(mean) for mean in means)))
    headings = (
        "method", "operation", *(f"{target} [s]" for target in names), *(f"{name} / {names[0]}" for name in names[1:]),
    )  # fmt: skip
    footnotes = (
        ("loads proven cold on one target and not on another are not set against each other",) if unproven_apart else ()
    )
    notes = [HOW_MEASURED, *dict.fromkeys(note for relatives in against for note in notes_on_tests(relatives.values()))]
    return Table("targets", f"Targets: {title}", headings, tuple(rows), (*notes, *left_out), footnotes)


def _agreeing(group: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """The largest set of comparisons that agree, one a target, and a note for each that is left out."""
    keys = [key for key in MUST_AGREE if key not in _MAY_DIFFER_BETWEEN_TARGETS]

    def agreed(each: Comparison) -> tuple[str | None, ...]:
        return tuple(each.agreed.get(key) for key in keys)

    sets: dict[tuple[str | None, ...], dict[str, Comparison]] = {}
    for each in group:
        sets.setdefault(agreed(each), {}).setdefault(each.target, each)
    chosen, together = max(sets.items(), key=lambda item: len(item[1]))
    notes = []
    for each in group:
        if each not in together.values():
            differing = [MUST_AGREE[key] for key, a, b in zip(keys, agreed(each), chosen, strict=True) if a != b]
            why = f"it differs in {', '.join(differing)}" if differing else "the target has other jobs here"
            notes.append(f"left out: {where(each)}: {why}")
    return list(together.values()), notes


def _scales(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    def of(each: Comparison) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        return each.study, each.target, tuple(sorted(each.agreed.items()))

    for (study, target, agreed), found in itertools.groupby(sorted(comparisons, key=of), key=of):
        group = sorted(found, key=lambda each: (each.nodes * each.tasks_per_node, each.nodes))
        if len({(each.nodes, each.tasks_per_node) for each in group}) > 1:
            apart = next((f" ({each.apart})" for each in group if each.apart), "")
            yield _of_scales(f"{study}, target {target}{apart}", group, dict(agreed))


def _of_scales(title: str, group: Sequence[Comparison], agreed: Mapping[str, str]) -> Table:
    methods = [method for each in group for method in each.methods]
    columns = {name: _scaled(group, name) for name in shown_operations(tuple(methods))}
    columns = {name: scaled for name, scaled in columns.items() if scaled}
    rows: list[tuple[Cell, ...]] = [
        (
            label,
            Number(each.nodes, 0),
            Number(each.tasks_per_node, 0),
            Number(each.nodes * each.tasks_per_node, 0),
            *(cell for scaled in columns.values() for cell in scaled[label, each.nodes, each.tasks_per_node]),
        )
        for label in dict.fromkeys(method.label for method in methods)
        for each in group
        if each.method(label)
    ]
    headings = ["method", "nodes", "tasks per node", "ranks"]
    for name in columns:
        operation = OPERATIONS[name]
        headings += [f"{operation} [GB/s]", f"{operation}, efficiency"]
        headings += [f"{operation}, of ceiling"] if name != "load_warm" else []
    notes = [HOW_SCALED, *repeated(methods)]
    if agreed.get("state_sharding"):
        notes.insert(0, f"how ranks share the state: {agreed['state_sharding']}")
    return Table("scaling", f"Scaling: {title}", tuple(headings), tuple(rows), tuple(notes))


def _scaled(group: Sequence[Comparison], operation: str) -> dict[tuple[str, int, int], tuple[Cell, ...]]:
    """Bandwidth, efficiency and share of the ceiling, of each method at each scale; empty where nothing is measured."""
    found: dict[tuple[str, int, int], tuple[Cell, ...]] = {}
    measured = False
    for label in dict.fromkeys(method.label for each in group for method in each.methods):
        there = [(each, method) for each in group if (method := each.method(label))]
        base = next(((each, method) for each, method in there if timed(method, operation).count), None)
        measured |= base is not None
        for each, method in there:
            rate = method.gbps(operation, timed(method, operation))
            efficiency = _efficiency((each, method), base, operation) if base else UNKNOWN
            ceiling = method.cost.write_ceiling_gbps if operation == "save" else method.cost.read_ceiling_gbps
            of_ceiling = (Part(rate.estimate / ceiling),) if operation != "load_warm" else ()
            found[label, each.nodes, each.tasks_per_node] = (Estimate(rate, 3), Estimate(efficiency), *of_ceiling)
    return found if measured else {}


def _efficiency(one: tuple[Comparison, Method], base: tuple[Comparison, Method], operation: str) -> Interval:
    """The bandwidth of a rank of one over that of a rank of the other; against itself it is 1, and nothing else."""
    if one[1] is base[1]:
        return Interval(1.0, math.nan, math.nan)
    (ranks, moved, one_timed), (base_ranks, base_moved, base_timed) = (
        (each.nodes * each.tasks_per_node, method.moved_bytes(operation), timed(method, operation).timed)
        for each, method in (one, base)
    )
    speedup = differences([(base_timed, one_timed)])[0].ratio
    more = moved / base_moved * base_ranks / ranks
    return Interval(more * speedup.estimate, more * speedup.low, more * speedup.high)


def _means(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """The geometric mean of each method's ratios to the reference over all comparisons that have the reference."""
    group = [each for each in comparisons if each.relative]
    if len(group) < 2:
        return
    reference = group[0].reference
    relatives = [each.relative for each in group]
    methods: list[Method] = [method for each in group for method in each.methods if method.label != reference]
    operations = shown_operations(tuple(methods))
    rows: list[tuple[Cell, ...]] = []
    incomplete: list[str] = []
    for label in dict.fromkeys(method.label for method in methods):
        means = mean_ratios(relatives, label)
        absent = sum(label not in each for each in relatives)
        if absent:
            incomplete.append(f"{label} is not among the methods of {absent} of them")
        marks = (len(incomplete),) if absent else ()
        rows.append((Marked(label, marks), *(Share(means[name] - 1) for name in operations), Share(means["size"] - 1)))
    headings = ("method", *(OPERATIONS[name] for name in operations), "size")
    over = "; ".join(where(each) for each in group)
    notes = (f"geometric means of the ratios of medians, over: {over}", "`-` where a ratio is unknown in one of them")
    title = f"Relative to {reference}, over {len(group)} comparisons"
    yield Table("overall", title, headings, tuple(rows), notes, tuple(incomplete))
