"""What the tables hold: the document's three, and what the methods cost. `analysis.render` draws them."""

from __future__ import annotations

from analysis.cells import Cell, Marked, Number, Part, Share, Table
from analysis.comparison import REFERENCE, Comparison, Method, change, improvement
from analysis.noise import in_short

BASIC, T5X = "tensorstore_basic", "tensorstore_t5x"


_HOW_MEASURED = (
    "medians over n valid trials [95 % bootstrap interval, which knows which job a trial belongs to]; a save lasts "
    "until it is committed (synced and renamed), a load until every byte is in memory; GiB = 2^30 bytes"
)

_WHAT_BANDWIDTH = (
    "bandwidth is the state's logical bytes over time, GB = 10^9 bytes, total over total; the ceiling is what the "
    "target itself did in the same jobs, before and after, with direct I/O where it allows that"
)

_WHAT_COST = (
    "load: cold where there are proven cold loads; memory is the peak above what was resident before, so a load's "
    "holds the state"
)

_COST_NOTES = (_WHAT_BANDWIDTH, _WHAT_COST)


def all_tables(comparison: Comparison) -> list[Table]:
    """The document's tables, and what the methods cost."""
    return [*document_tables(comparison), _cost(comparison)]


def document_tables(comparison: Comparison) -> list[Table]:
    """The three tables at the end of the document: summary, relative to PyTorch, T5X against basic."""
    return [_summary(comparison), _relative(comparison), _t5x_against_basic(comparison)]


def _where(comparison: Comparison) -> str:
    where = f"{comparison.study}, target {comparison.target}, {comparison.nodes}x{comparison.tasks_per_node}"
    return f"{where} ({comparison.apart})" if comparison.apart else where


def _summary(comparison: Comparison) -> Table:
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    # A column of its own, and only where it is needed: proven and unproven loads do not compare.
    unproven = any(method.load_unproven.count or method.load_unproven.invalid for method in comparison.methods)
    for method in comparison.methods:
        first = len(problems) + 1
        problems += [f"{method.label}: {problem}" for problem in method.problems]
        rows.append(
            (
                Marked(method.label, tuple(range(first, len(problems) + 1))),
                method.save,
                method.load_cold,
                *([method.load_unproven] if unproven else []),
                method.load_warm,
                Number(method.size_bytes / 2**30),
                method.best_for,
            )
        )
    cold = ("load, cold [s]", "load, not proven cold [s]") if unproven else ("load, cold [s]",)
    headings = ("method", "save [s]", *cold, "load, warm [s]", "size [GiB]", "best for")
    doubts = (f"beware: {line}" for line in in_short(comparison.doubts))
    notes = (f"state: {comparison.state}", _HOW_MEASURED, *doubts)
    return Table("summary", f"Summary: {_where(comparison)}", headings, tuple(rows), notes, tuple(problems))


def _relative(comparison: Comparison) -> Table:
    reference = comparison.method(REFERENCE)
    headings = ("method", "save", "load, cold", "load, warm", "size")
    title = f"Relative to PyTorch ({REFERENCE}): {_where(comparison)}"
    if reference is None:
        return Table("relative", title, headings, (), (f"the study has no {REFERENCE} to set the others against",))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method.label,
            *(Share(change(a, b)) for a, b in zip(_figures(method), _figures(reference), strict=True)),
        )
        for method in comparison.methods
        if method is not reference
    )
    return Table("relative", title, headings, rows, ("of medians; + is more time, or more bytes",))


def _t5x_against_basic(comparison: Comparison) -> Table:
    basic, t5x = comparison.method(BASIC), comparison.method(T5X)
    headings = ("", "save time saved", "cold load time saved", "warm load time saved", "size")
    title = f"T5X against basic TensorStore: {_where(comparison)}"
    if basic is None or t5x is None:
        absent = BASIC if basic is None else T5X
        return Table("t5x_against_basic", title, headings, (), (f"the study has no {absent}",))
    pairs = list(zip(_figures(t5x), _figures(basic), strict=True))
    row: tuple[Cell, ...] = ("T5X", *(Share(improvement(a, b)) for a, b in pairs[:3]), Share(change(*pairs[3])))
    return Table("t5x_against_basic", title, headings, (row,), ("of medians; + is time saved, or more bytes",))


def _cost(comparison: Comparison) -> Table:
    headings = (
        "method", "save [GB/s]", "save, of ceiling", "load [GB/s]", "load, of ceiling",
        "CPU, save [s]", "CPU, load [s]", "memory, save [MiB]", "memory, load [MiB]",
        "written / state", "files", "under 1 MiB",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method in comparison.methods:
        cost = method.cost
        rows.append(
            (
                method.label,
                Number(cost.save_gbps, 3),
                Part(cost.save_share),
                Number(cost.load_gbps, 3),
                Part(cost.load_share),
                Number(cost.save_cpu_s),
                Number(cost.load_cpu_s),
                Number(cost.save_extra_bytes / 2**20, 0),
                Number(cost.load_extra_bytes / 2**20, 0),
                Number(cost.written_share),
                Number(cost.file_count, 0),
                Part(cost.small_file_share),
            )
        )
    return Table(
        "cost", f"Bandwidth and cost: {_where(comparison)}", headings, tuple(rows), (_WHAT_BANDWIDTH, _WHAT_COST)
    )


def _figures(method: Method) -> tuple[float, float, float, float]:
    return method.save.median, method.load_cold.median, method.load_warm.median, method.size_bytes
