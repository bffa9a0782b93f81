"""What the tables of one comparison hold: those of the original comparison, phases, bandwidth, cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from analysis.measures.caveats import in_short
from analysis.measures.comparison import Comparison
from analysis.measures.differences import Difference
from analysis.measures.method import Method
from analysis.measures.relative import OPERATIONS, Relative, related, timed
from analysis.measures.statistics import Interval
from analysis.measures.stragglers import KINDS, Straggler
from analysis.tables.table import MISSING, Cell, Change, Marked, Number, Part, Share, Table

BASIC, T5X = "tensorstore_basic", "tensorstore_t5x"

HOW_MEASURED = (
    "medians over n valid trials; in brackets: 95 % bootstrap intervals, which know the job of each trial; a save "
    "lasts until it is committed (synced and renamed), a load until every byte is in memory; GiB = 2^30 bytes"
)

HOW_TESTED = (
    "ratios: methods are compared by their medians within each round, and the geometric mean over the rounds is shown; "
    "in brackets: 95 % intervals (Student's t over the rounds); `slower` or `faster` takes an interval that excludes "
    "equality, and p < 0.05 in t tests with the pair's scatter or that of all methods, corrected for both tests and "
    "all methods of an operation (Benjamini-Hochberg); `too few ... to tell` is what no result could have changed: it "
    "takes three rounds"
)

HOW_TESTED_BETWEEN = (
    "A and B share no rounds: ratios are of geometric means over the rounds' medians; in brackets: 95 % intervals by "
    "Welch's t test, whose unit is the round; `not significant` is p >= 0.05, corrected for all methods of an "
    "operation (Benjamini-Hochberg); `too few ... to tell` is what no result could have changed: it takes three "
    "rounds a side"
)

_WITHIN_ONE_JOB = (
    "with one job a side, trials are permuted, and intervals are their bootstrap's: that these two jobs differ doesn't "
    "say that others would"
)

_WHAT_BANDWIDTH = (
    "bandwidth is the state's logical bytes over time, GB = 10^9 bytes, total over total; the ceiling is what the "
    "target itself did in the same jobs, before and after, by direct or buffered and synced I/O, whichever was faster; "
    "loads are cold ones where there are proven cold loads"
)

_TOGETHER = (
    "of all ranks together: an operation lasts from the first start to the last end, and the ceiling is what all ranks "
    "wrote and read at the same time"
)

_TOGETHER_IN_PHASES = "each phase lasts from its first start on a rank to its last end, so that phases may overlap"

_WHAT_COST = (
    "medians; memory is the peak above what was resident before, so a load's holds the state; written, read and taken "
    "on disk are shares of the state's bytes: written / state is the write amplification; cores: CPU time over "
    "duration; created / s: files and directories over the time of the save"
)

_COST_TOGETHER = "of all ranks together, but memory, which is that of the rank that took most"

_WHAT_SPREAD = (
    "own work is what a rank does before it waits for the others: of a save its call and its sync, of a load all of "
    "it; times are medians over the trials, of the fastest, the middle and the slowest rank in each; the last to end "
    "its own work is the straggler; where ranks exchange within the call (torch_dcp, tensorstore_ocdbt), waiting for "
    "each other is part of it"
)


def all_tables(comparison: Comparison) -> list[Table]:
    """The original comparison's tables, the parts of a save, and what the methods reach and cost."""
    found = [*original_tables(comparison), _phases(comparison), _bandwidth(comparison), _cost(comparison)]
    return [*found, *([_spread(comparison)] if _have_ranks(comparison) else [])]


def original_tables(comparison: Comparison) -> list[Table]:
    """The three tables of the original OpenLLaMA-3B comparison: summary, relative to PyTorch, T5X against basic."""
    return [_summary(comparison), _relative(comparison), _t5x_against_basic(comparison)]


def where(comparison: Comparison) -> str:
    """What a comparison is of, for titles."""
    named = f"{comparison.study}, target {comparison.target}, {comparison.nodes}x{comparison.tasks_per_node}"
    return f"{named} ({comparison.apart})" if comparison.apart else named


def shown_operations(methods: tuple[Method, ...]) -> list[str]:
    """The operations that get a column: loads that aren't proven cold only where there are any."""
    unproven = any(method.load_unproven.count or method.load_unproven.invalid for method in methods)
    return [name for name in OPERATIONS if unproven or name != "load_unproven"]


def _summary(comparison: Comparison) -> Table:
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    operations = shown_operations(comparison.methods)
    for method in comparison.methods:
        first = len(problems) + 1
        problems += [f"{method.label}: {problem}" for problem in method.problems]
        rows.append(
            (
                Marked(method.label, tuple(range(first, len(problems) + 1))),
                *(timed(method, name) for name in operations),
                Number(method.size_bytes / 2**30),
                method.best_for,
            )
        )
    headings = ("method", *(f"{OPERATIONS[name]} [s]" for name in operations), "size [GiB]", "best for")
    doubts = (f"beware: {line}" for line in in_short(comparison.doubts))
    notes = (f"state: {comparison.state}", HOW_MEASURED, *doubts)
    return Table("summary", f"Summary: {where(comparison)}", headings, tuple(rows), notes, tuple(problems))


def _relative(comparison: Comparison) -> Table:
    reference = comparison.reference
    operations = shown_operations(comparison.methods)
    headings = ("method", *(OPERATIONS[name] for name in operations), "size")
    title = f"Relative to {reference}: {where(comparison)}"
    if comparison.method(reference) is None:
        return Table("relative", title, headings, (), (f"the study has no {reference} to set the others against",))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (label, *(_change(each.difference(name)) for name in operations), Share(each.size - 1))
        for label, each in comparison.relative.items()
    )
    notes = ("of medians; + is more time, or more bytes", *notes_on_tests(comparison.relative.values()))
    return Table("relative", title, headings, rows, notes)


def _t5x_against_basic(comparison: Comparison) -> Table:
    basic, t5x = comparison.method(BASIC), comparison.method(T5X)
    headings = ("", "save time saved", "cold load time saved", "warm load time saved", "size")
    title = f"T5X against basic TensorStore: {where(comparison)}"
    if basic is None or t5x is None:
        absent = BASIC if basic is None else T5X
        return Table("t5x_against_basic", title, headings, (), (f"the study has no {absent}",))
    [found] = related([(t5x, basic)], comparison.methods)
    saved = (_saved(each) for each in (found.save, found.load_cold, found.load_warm))
    row: tuple[Cell, ...] = ("T5X", *saved, Share(found.size - 1))
    notes = ("of medians; + is time saved, or more bytes", *notes_on_tests([found]))
    return Table("t5x_against_basic", title, headings, (row,), notes)


def notes_on_tests(relatives: Iterable[Relative], how: str = HOW_TESTED) -> list[str]:
    """How the verdicts came about, where there are any."""
    tests = [each.difference(name) for each in relatives for name in OPERATIONS]
    told = [each for each in tests if each.verdict()]
    within = any(each.test.unit == "trials" and math.isfinite(each.corrected_p) for each in told)
    return [*([how] if told else []), *([_WITHIN_ONE_JOB] if within else [])]


def _change(difference: Difference) -> Change:
    ratio = difference.ratio
    interval = Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)
    return Change(interval, difference.verdict(), difference.corrected_p)


def _saved(difference: Difference) -> Change:
    ratio = difference.ratio
    interval = Interval(1 - ratio.estimate, 1 - ratio.high, 1 - ratio.low)
    return Change(interval, difference.verdict(), difference.corrected_p)


def _phases(comparison: Comparison) -> Table:
    parts = list(dict.fromkeys(phase for method in comparison.methods for phase in method.phases))
    loads = [name for name in shown_operations(comparison.methods) if name != "save"]
    headings = (
        "method", *(f"save: {part} [s]" for part in parts), "save [s]", *(f"{OPERATIONS[name]} [s]" for name in loads),
    )  # fmt: skip
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method.label,
            *(Number(method.phases.get(part, math.nan)) for part in parts),
            *(Number(timed(method, name).median) for name in ("save", *loads)),
        )
        for method in comparison.methods
    )
    note = (
        "medians, so that the parts need not add up to the whole; a training job may go on after `call` if it may fail"
    )
    notes = (note, *([_TOGETHER_IN_PHASES] if _have_ranks(comparison) else []))
    return Table("phases", f"Phases: {where(comparison)}", headings, rows, notes)


def _have_ranks(comparison: Comparison) -> bool:
    return comparison.nodes * comparison.tasks_per_node > 1


def _bandwidth(comparison: Comparison) -> Table:
    headings = ("method", "save [GB/s]", "save, of ceiling", "load [GB/s]", "load, of ceiling")
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method.label,
            Number(method.cost.save_gbps, 3),
            Part(method.cost.save_share),
            Number(method.cost.load_gbps, 3),
            Part(method.cost.load_share),
        )
        for method in comparison.methods
    )
    notes = (
        _WHAT_BANDWIDTH,
        *_ceiling_ways(comparison.methods),
        *([_TOGETHER] if _have_ranks(comparison) else []),
        *repeated(comparison.methods),
    )
    return Table("bandwidth", f"Bandwidth: {where(comparison)}", headings, rows, notes)


def _ceiling_ways(methods: Collection[Method]) -> list[str]:
    """How the ceilings were reached, where there are any."""
    ways = {
        "saves": {method.cost.write_ceiling_way for method in methods},
        "loads": {method.cost.read_ceiling_way for method in methods},
    }
    known = {name: " or ".join(sorted(found - {""})) for name, found in ways.items() if found - {""}}
    return [f"the ceiling here: {'; '.join(f'for {name} {way}' for name, way in known.items())}"] if known else []


def repeated(methods: Iterable[Method]) -> list[str]:
    """That loads move more than what was saved, where every rank loads all of it."""
    factors = sorted({round(each.loaded_bytes / each.saved_bytes, 2) for each in methods if each.saved_bytes > 0})
    said = " or ".join(f"{factor:g}" for factor in factors if factor > 1)
    return [f"every rank loads the whole state: a load moves {said} times the bytes of a save"] if said else []


def _cost(comparison: Comparison) -> Table:
    headings = (
        "method", "CPU, save [s]", "CPU, load [s]", "cores, save", "cores, load", "memory, save [MiB]",
        "memory, load [MiB]", "written / state", "read / state", "on disk / state", "files", "under 1 MiB",
        "directories", "files / rank", "created / s",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method in comparison.methods:
        cost = method.cost
        rows.append(
            (
                method.label,
                Number(cost.save_cpu_s),
                Number(cost.load_cpu_s),
                Number(cost.save_cores, 1),
                Number(cost.load_cores, 1),
                Number(cost.save_extra_bytes / 2**20, 0),
                Number(cost.load_extra_bytes / 2**20, 0),
                Number(cost.written_share),
                Number(cost.read_share),
                Number(cost.disk_share),
                Number(cost.file_count, 0),
                Part(cost.small_file_share),
                Number(cost.directory_count, 0),
                Number(cost.files_per_rank, 1),
                Number(cost.creates_per_s, 1),
            )
        )
    notes = (_WHAT_COST, *([_COST_TOGETHER] if _have_ranks(comparison) else []), *repeated(comparison.methods))
    return Table("cost", f"Cost: {where(comparison)}", headings, tuple(rows), notes)


def _spread(comparison: Comparison) -> Table:
    headings = (
        "method", "operation", "ranks", "trials", "own work, fastest rank [s]", "own work, median rank [s]",
        "own work, slowest rank [s]", "slowest / median", "last most often: rank", "last most often: host",
    )  # fmt: skip
    found = [(method.label, each) for method in comparison.methods for each in method.spreads]
    rows: list[tuple[Cell, ...]] = [
        (
            label,
            KINDS[each.kind],
            Number(each.ranks, 0),
            Number(each.trials, 0),
            Number(each.fastest_s),
            Number(each.median_s),
            Number(each.slowest_s),
            Number(each.slowest_over_median),
            in_trials(each.last_rank, each.trials),
            in_trials(each.last_host, each.trials),
        )
        for label, each in found
    ]
    unsure = sum(each.unsure for _, each in found)
    notes = [_WHAT_SPREAD] if rows else ["no valid operation of several ranks"]
    if unsure:
        notes.append(f"in {unsure} trials the last two ended nearer to each other than their clocks are known")
    return Table("ranks", f"Ranks: {where(comparison)}", headings, tuple(rows), tuple(notes))


def in_trials(straggler: Straggler, trials: int) -> str:
    """Who was last, in how many of the trials."""
    return f"{straggler.name} ({straggler.trials} of {trials} trials)" if straggler.trials else MISSING
