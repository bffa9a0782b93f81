"""Makes the tables of one comparison: those of the original comparison, phases, bandwidth, cost and ranks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import get_args

from analysis.measures.caveats import in_short
from analysis.measures.comparison import Comparison, Relative, related
from analysis.measures.differences import Difference
from analysis.measures.method import Method
from analysis.measures.operation import Direction, Operation
from analysis.measures.statistics import Interval
from analysis.measures.stragglers import Straggler
from analysis.measures.trials import NO_TRIALS
from analysis.tables.in_place import in_place_tables
from analysis.tables.lost import loop_tables
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
    "of the loads, those that are nearest to a restart from storage are shown: cold from the device, else not in this "
    "node's cache, else cold unproven, else warm"
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
    """Return the original comparison's tables, then those of phases, bandwidth, cost, loads in place and ranks.

    Of a setting with a training loop, those of lost time.
    """
    if comparison.setting.loop:
        return loop_tables(comparison)
    tables = [*original_tables(comparison), _phases(comparison), _bandwidth(comparison), _cost(comparison)]
    return [*tables, *in_place_tables(comparison), *([_spread(comparison)] if comparison.setting.ranks > 1 else [])]


def original_tables(comparison: Comparison) -> list[Table]:
    """Return the three tables of the original OpenLLaMA-3B comparison: summary, relative to PyTorch, T5X to basic."""
    return [_summary(comparison), _relative(comparison), _t5x_against_basic(comparison)]


def shown_operations(methods: Iterable[Method]) -> list[Operation]:
    """Return the operations that get a column: loads whose coldness is unproven get one only if some were measured."""
    measured = {operation for method in methods for operation in method.operations}
    always = {Operation.SAVE, Operation.LOAD_COLD, Operation.LOAD_WARM}
    return [operation for operation in Operation if operation in always | measured]


def _summary(comparison: Comparison) -> Table:
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    operations = shown_operations(comparison.setting.methods)
    for method in comparison.setting.methods:
        first = len(problems) + 1
        problems += [f"{method.label}: {problem}" for problem in method.problems]
        rows.append(
            (
                Marked(method.label, tuple(range(first, len(problems) + 1))),
                *(method[operation] for operation in operations),
                Number(method.files.size_bytes / 2**30),
                method.facts.get("best_for", ""),
            )
        )
    named = (f"{comparison.setting.label(operation)} [s]" for operation in operations)
    headings = ("method", *named, "size [GiB]", "best for")
    caveats = (f"beware: {line}" for line in in_short(comparison.setting.caveats))
    notes = (f"state: {comparison.setting.state}", HOW_MEASURED, *caveats)
    return Table("summary", f"Summary: {comparison.setting}", headings, tuple(rows), notes, tuple(problems))


def _relative(comparison: Comparison) -> Table:
    reference = comparison.reference
    operations = shown_operations(comparison.setting.methods)
    headings = ("method", *map(comparison.setting.label, operations), "size")
    title = f"Relative to {reference}: {comparison.setting}"
    if comparison.setting.method(reference) is None:
        return Table("relative", title, headings, (), (f"the study has no {reference} to compare the others with",))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (label, *(_change(relative.operations[operation]) for operation in operations), Share(relative.size - 1))
        for label, relative in comparison.differences.items()
    )
    notes = ("of medians; + is more time, or more bytes", *notes_on_tests(comparison.differences.values()))
    return Table("relative", title, headings, rows, notes)


def _t5x_against_basic(comparison: Comparison) -> Table:
    basic, t5x = comparison.setting.method(BASIC), comparison.setting.method(T5X)
    headings = ("", "save time saved", "cold load time saved", "warm load time saved", "size")
    title = f"T5X against basic TensorStore: {comparison.setting}"
    if basic is None or t5x is None:
        absent = BASIC if basic is None else T5X
        return Table("t5x_against_basic", title, headings, (), (f"the study has no {absent}",))
    [relative] = related([(t5x, basic)], comparison.setting.methods)
    compared = (Operation.SAVE, Operation.LOAD_COLD, Operation.LOAD_WARM)
    saved = (_saved(relative.operations[operation]) for operation in compared)
    row: tuple[Cell, ...] = ("T5X", *saved, Share(relative.size - 1))
    notes = ("of medians; + is time saved, or more bytes", *notes_on_tests([relative]))
    return Table("t5x_against_basic", title, headings, (row,), notes)


def notes_on_tests(relatives: Iterable[Relative], how: str = HOW_TESTED) -> list[str]:
    """Explain the tests behind the verdicts, if any verdict is shown."""
    return notes_on_verdicts([test for relative in relatives for test in relative.operations.values()], how)


def notes_on_verdicts(tests: Iterable[Difference], how: str = HOW_TESTED) -> list[str]:
    """Explain the tests behind the verdicts of these differences, if any verdict is shown."""
    verdicts = [difference for difference in tests if difference.verdict()]
    within = any(shown.test.unit == "trials" and math.isfinite(shown.corrected_p) for shown in verdicts)
    return [*([how] if verdicts else []), *([_WITHIN_ONE_JOB] if within else [])]


def _change(difference: Difference) -> Change:
    ratio = difference.ratio
    interval = Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)
    return Change(interval, difference.verdict(), difference.corrected_p)


def _saved(difference: Difference) -> Change:
    ratio = difference.ratio
    interval = Interval(1 - ratio.estimate, 1 - ratio.high, 1 - ratio.low)
    return Change(interval, difference.verdict(), difference.corrected_p)


def _phases(comparison: Comparison) -> Table:
    parts = list(dict.fromkeys(phase for method in comparison.setting.methods for phase in method.phases))
    operations = shown_operations(comparison.setting.methods)
    named = (f"{comparison.setting.label(operation)} [s]" for operation in operations)
    headings = ("method", *(f"save: {part} [s]" for part in parts), *named)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method.label,
            *(Number(method.phases.get(part, NO_TRIALS).median_s) for part in parts),
            *(Number(method[operation].median_s) for operation in operations),
        )
        for method in comparison.setting.methods
    )
    note = (
        "medians, so that the parts need not add up to the whole; a training job may go on after `call` if it may fail"
    )
    notes = (note, *([_TOGETHER_IN_PHASES] if comparison.setting.ranks > 1 else []))
    return Table("phases", f"Phases: {comparison.setting}", headings, rows, notes)


def _bandwidth(comparison: Comparison) -> Table:
    save = comparison.setting.label(Operation.SAVE)
    headings = ("method", f"{save} [GB/s]", "save, of ceiling", "load [GB/s]", "load, of ceiling")
    rows: list[tuple[Cell, ...]] = []
    for method in comparison.setting.methods:
        used = (method.usage_of(Operation.SAVE), method.usage_of(method.cold_load()))
        cells = [(Number(usage.gbps, 3), Part(usage.of_ceiling)) for usage in used]
        rows.append((method.label, *cells[0], *cells[1]))
    notes = (
        _WHAT_BANDWIDTH,
        *_ceiling_ways(comparison.setting.methods),
        *([_TOGETHER] if comparison.setting.ranks > 1 else []),
        *repeated(comparison.setting.methods),
    )
    return Table("bandwidth", f"Bandwidth: {comparison.setting}", headings, tuple(rows), notes)


def _ceiling_ways(methods: Collection[Method]) -> list[str]:
    """Explain how the ceilings were measured, if any were."""
    known, names = [], {"write": "saves", "read": "loads"}
    for direction in get_args(Direction):
        ways = " or ".join(filter(None, (method.ceilings[direction].way for method in methods)))
        known += [f"for {names[direction]} {' or '.join(sorted(set(ways.split(' or '))))}"] if ways else []
    return [f"the ceiling here: {'; '.join(known)}"] if known else []


def repeated(methods: Iterable[Method]) -> list[str]:
    """Note that loads move more bytes than saves if every rank loads the whole state."""
    moved = [(method.load_trials().moved_bytes, method[Operation.SAVE].moved_bytes) for method in methods]
    factors = sorted({round(loaded / saved, 2) for loaded, saved in moved if saved > 0})
    more = " or ".join(f"{factor:g}" for factor in factors if factor > 1)
    return [f"every rank loads the whole state: a load moves {more} times the bytes of a save"] if more else []


def _cost(comparison: Comparison) -> Table:
    headings = (
        "method", "CPU, save [s]", "CPU, load [s]", "cores, save", "cores, load", "memory, save [MiB]",
        "memory, load [MiB]", "written / state", "read / state", "on disk / state", "files", "under 1 MiB",
        "directories", "files / rank", "created / s",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method in comparison.setting.methods:
        save, load, files = method.usage_of(Operation.SAVE), method.usage_of(method.cold_load()), method.files
        rows.append(
            (
                method.label,
                Number(save.cpu_s),
                Number(load.cpu_s),
                Number(save.cores, 1),
                Number(load.cores, 1),
                Number(save.extra_bytes / 2**20, 0),
                Number(load.extra_bytes / 2**20, 0),
                Number(save.device_fraction),
                Number(load.device_fraction),
                Number(files.allocated_fraction),
                Number(files.count, 0),
                Part(files.small_fraction),
                Number(files.directory_count, 0),
                Number(files.per_rank, 1),
                Number(files.created_per_s, 1),
            )
        )
    notes = (
        _WHAT_COST,
        *([_COST_TOGETHER] if comparison.setting.ranks > 1 else []),
        *repeated(comparison.setting.methods),
    )
    return Table("cost", f"Cost: {comparison.setting}", headings, tuple(rows), notes)


def _spread(comparison: Comparison) -> Table:
    headings = (
        "method", "operation", "ranks", "trials", "own work, fastest rank [s]", "own work, median rank [s]",
        "own work, slowest rank [s]", "slowest / median", "last most often: rank", "last most often: host",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    unsure = 0
    for method in comparison.setting.methods:
        for ranks in method.imbalances:
            unsure += ranks.unsure
            rows.append(
                (
                    method.label,
                    ranks.operation.label,
                    Number(ranks.ranks, 0),
                    Number(ranks.trials, 0),
                    Number(ranks.fastest_s),
                    Number(ranks.median_s),
                    Number(ranks.slowest_s),
                    Number(ranks.slowest_over_median),
                    in_trials(ranks.last_rank, ranks.trials),
                    in_trials(ranks.last_host, ranks.trials),
                )
            )
    notes = [_WHAT_SPREAD] if rows else ["no valid operation of several ranks"]
    if unsure:
        notes.append(f"in {unsure} trials the last two ended nearer to each other than their clocks are known")
    return Table("ranks", f"Ranks: {comparison.setting}", headings, tuple(rows), tuple(notes))


def in_trials(straggler: Straggler, trials: int) -> str:
    """Name the rank or host that was last most often, and in how many of the trials."""
    return f"{straggler.name} ({straggler.trials} of {trials} trials)" if straggler.trials else MISSING
