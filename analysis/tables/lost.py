"""Makes the tables of a training loop: lost time by method, its parts, what a save takes beside time, its ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from analysis.logs.claims import PROVEN
from analysis.measures.caveats import in_short
from analysis.measures.comparison import Comparison
from analysis.measures.loop import Part
from analysis.measures.loop_differences import lost_differences
from analysis.measures.lost import AtInterval, LoopCost, Tested
from analysis.measures.method import Method
from analysis.measures.setting import SYNC, Setting
from analysis.tables.table import MISSING, Cell, Change, Estimate, Judged, Marked, Number, Table

HOW_LOST = (
    "lost: what the steps of a save took above the median step without checkpoints in the same job, from its call "
    "until steps are back in the band of 95 % of those; medians over the saves; in brackets: 95 % intervals, by a "
    "bootstrap over blocks, those without checkpoints included; lost share: of the interval between saves"
)

HOW_JUDGED = (
    "`significant`: the interval excludes zero, and p < 0.05 where blocks with and without checkpoints are exchanged "
    "within jobs, corrected for all methods (Benjamini-Hochberg)"
)

_HOW_COMPARED = (
    "`more` or `less` than the reference, in s per save: differences within rounds (Student's t; with one job a side, "
    "blocks are exchanged, and the interval includes what both references leave unsure), corrected for all methods; "
    "`too few ... to tell`: no result could be significant"
)

HOW_COMPARED_BETWEEN = (
    "B - A: `more` or `less` in s per save: A and B share no rounds, so Welch's t test compares the rounds of both "
    "(with one job a side, blocks are exchanged, and the interval includes what both references leave unsure), "
    "corrected for all methods; `too few ... to tell`: no result could be significant, since it takes three rounds a "
    "side"
)

_WHAT_LATENCY = (
    "latency: from the call to the commit; exposure: from one call to the next, and the latency: the most work that a "
    "failure can destroy; shortest time between calls: the latency, since one save is in flight; saves per hour: "
    "3600 s divided by it"
)

_WHAT_PARTS = (
    "of a save, parts add up to its lost time; medians needn't. Blocked: wait (for the save before), snapshot, call, "
    "update wait (of the optimizer, for a copy). Interference: the other excess of steps up to the commit. Tail: after "
    "it. `sync` holds the loop for a look at the files' dirty pages, too, which the latency doesn't have. What is "
    "clocked below a thousandth of a step counts as nothing in the tests"
)

_WHAT_BESIDE = (
    "medians, above the job's blocks without checkpoints, whose own memory includes the buffers that a way allocates "
    "at its start; memory, threads and descriptors include helper processes, on the rank that used most; threads and "
    "descriptors are counted between steps, so that those of a save within one step are not seen; grown: the end of "
    "the last block above that of the first one of the same kind; CPU per save, of all ranks; CPU of the save itself: "
    "of the process that saved (`sync`: in the call), unknown where a thread of the loop's process or a library saved; "
    "the first save is reported separately"
)

_WHAT_SLOW_RANK = (
    "the slowest rank of a save is the one whose own steps (without the collective) exceed its steps without "
    "checkpoints most, if by more than those vary; by: the part in which it differs most from the others. If no step "
    "shows one, or shows less than half as much, it is the rank whose files were on storage last (by: writing), if by "
    "more than a tenth: the others wait for it to commit. Excess: above the others' median"
)


def loop_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of a setting with a training loop."""
    tables = [_lost(comparison), _parts(comparison.setting), _beside(comparison.setting)]
    return [*tables, *([_slow_ranks(comparison.setting)] if comparison.setting.ranks > 1 else [])]


def loop_methods(setting: Setting) -> list[tuple[Method, LoopCost]]:
    """Return the methods that left a log of a loop."""
    return [(method, method.loop) for method in setting.methods if method.loop]


def _lost(comparison: Comparison) -> Table:
    setting = comparison.setting
    reference = _reference(comparison)
    against = _against(setting, reference) if reference else {}
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    for method in setting.methods:
        first = len(problems) + 1
        problems += [f"{method.label}: {problem}" for problem in method.problems]
        label = Marked(method.label, tuple(range(first, len(problems) + 1)))
        if method.loop is None:
            nothing: tuple[Cell, ...] = tuple(Number(math.nan) for _ in range(8 + (reference is not None)))
            rows.append((label, *nothing, *(Number(math.nan, 0),) * 3))
            continue
        for at in method.loop.at:
            difference = (judged(against.get((method.label, at.every), Tested())),) if reference else ()
            rows.append((label, *_first_columns(at), *difference, *_other_columns(method.loop, at)))
    latency = "latency" if setting.durability == PROVEN else "latency, durability unproven"
    headings = (
        "method", "every [steps]", "lost per save [s]", "lost share",
        *([f"more than {reference.label} [s]"] if reference else []), "blocked [s]", f"{latency} [s]", "exposure [s]",
        "shortest time between calls [s]", "saves per hour, at most", "saves", "invalid", "waited",
    )  # fmt: skip
    caveats = (f"beware: {line}" for line in in_short(setting.caveats))
    explained = (HOW_LOST, *_recorded(setting), HOW_JUDGED, *((_HOW_COMPARED,) if reference else ()), _WHAT_LATENCY)
    notes = (f"loop: {setting.loop}", f"state: {setting.state}", *explained)
    return Table("lost", f"Lost time: {setting}", headings, tuple(rows), (*notes, *caveats), tuple(problems))


def _recorded(setting: Setting) -> list[str]:
    """Say what the recorder took; nothing where no log has it."""
    all_s = [job.recorder_s for _, cost in loop_methods(setting) for job in cost.jobs if math.isfinite(job.recorder_s)]
    return [f"recording a step took at most {1e6 * max(all_s):.0f} µs of it, in every block"] if all_s else []


def _first_columns(at: AtInterval) -> tuple[Cell, ...]:
    return Number(at.every, 0), judged(at.lost), Change(at.share, "", math.nan)


def _other_columns(cost: LoopCost, at: AtInterval) -> tuple[Cell, ...]:
    return (
        Estimate(at.blocked),
        Estimate(at.latency),
        Number(at.exposure_s),
        Number(cost.shortest_s),
        Number(3600 / cost.shortest_s if cost.shortest_s > 0 else math.nan, 0),
        Number(at.saves, 0),
        Number(at.invalid, 0),
        Number(at.waited, 0),
    )


def judged(amount: Tested) -> Judged:
    """Make the cell of an amount with its verdict."""
    return Judged(amount.interval, amount.verdict, amount.p)


def _reference(comparison: Comparison) -> Method | None:
    """Return the method that others are compared with: the reference, or its synchronous way."""
    labels = (comparison.reference, f"{comparison.reference}+way={SYNC}")
    known = (comparison.setting.method(label) for label in labels)
    return next((method for method in known if method and method.loop), None)


def _against(setting: Setting, reference: Method) -> Mapping[tuple[str, int], Tested]:
    """Compare the other methods with the reference, at the same interval."""
    base = {at.every: at for at in reference.loop.at} if reference.loop else {}
    pairs = {
        (method.label, at.every): (at.means, base[at.every].means)
        for method, cost in loop_methods(setting)
        if method is not reference
        for at in cost.at
        if at.every in base
    }
    return dict(zip(pairs, lost_differences(list(pairs.values())), strict=True))


def at_same_interval(one: Method, other: Method) -> list[tuple[AtInterval, AtInterval]]:
    """Pair what two methods lost at the intervals that both have."""
    others = {at.every: at for at in other.loop.at} if other.loop else {}
    return [(at, others[at.every]) for at in one.loop.at if at.every in others] if one.loop else []


def _parts(setting: Setting) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (method.label, Number(at.every, 0), *(judged(at.parts[part]) for part in Part))
        for method, cost in loop_methods(setting)
        for at in cost.at
    ]
    headings = ("method", "every [steps]", *(f"{part.value} [s]" for part in Part))
    return Table("lost_parts", f"Parts of the lost time: {setting}", headings, tuple(rows), (_WHAT_PARTS, HOW_JUDGED))


def _beside(setting: Setting) -> Table:
    headings = (
        "method", "first save, lost [s]", "first save, blocked [s]", "first save, latency [s]",
        "memory without checkpoints [MiB]", "memory, peak above [MiB]", "memory, lasting [MiB]", "memory, grown [MiB]",
        "threads", "descriptors", "CPU per save [s]", "helpers' CPU per save [s]", "CPU of the save itself [s]",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method, cost in loop_methods(setting):
        above, first = cost.above, cost.first
        sizes = (above.reference_bytes, above.peak_bytes, above.lasting_bytes, above.grown_bytes)
        rows.append(
            (
                method.label,
                *(Number(value) for value in (first.lost_s, first.blocked_s, first.latency_s)),
                *(Number(size / 2**20, 0) for size in sizes),
                Number(above.threads, 0),
                Number(above.descriptors, 0),
                Number(above.cpu_s),
                Number(above.helper_cpu_s),
                Number(above.own_cpu_s),
            )
        )
    return Table("lost_beside", f"Other costs of saves: {setting}", headings, tuple(rows), (_WHAT_BESIDE,))


def _slow_ranks(setting: Setting) -> Table:
    headings = ("method", "saves", "slowest most often: rank", "host", "by", "excess [s]")
    rows = tuple(_slow_rank(method.label, cost) for method, cost in loop_methods(setting))
    return Table("lost_ranks", f"Slowest ranks: {setting}", headings, rows, (_WHAT_SLOW_RANK,))


def _slow_rank(label: str, cost: LoopCost) -> tuple[Cell, ...]:
    saves = [save for job in cost.jobs for save in job.saves if save.valid and not save.opening]
    slow = [save.slow_rank for save in saves if save.slow_rank]
    if not slow:
        return label, Number(len(saves), 0), MISSING, MISSING, MISSING, Number(math.nan)
    rank, times = _most_often([str(one.rank) for one in slow])
    named = [one for one in slow if str(one.rank) == rank]
    host, by = (_most_often(values)[0] for values in ([one.host for one in named], [one.by for one in named]))
    excess_s = sorted(one.excess_s for one in named)[len(named) // 2]
    return label, Number(len(saves), 0), f"{rank} ({times} of {len(saves)} saves)", host, by, Number(excess_s)


def _most_often(values: Sequence[str]) -> tuple[str, int]:
    """Return the most frequent value and how often it occurs; of several the first by name."""
    counts = Counter(values)
    return min(counts.items(), key=lambda item: (-item[1], item[0]))
