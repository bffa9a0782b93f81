"""Makes the table of loads into memory that existed before."""

from __future__ import annotations

from analysis.measures.comparison import Comparison
from analysis.tables.table import Cell, Number, Part, Table

_WHAT = (
    "a load in place fills memory that the job had before, as a restart does that allocates no second copy; memory is "
    "the peak above what was resident before: a load's holds the state, a load in place's doesn't"
)


def in_place_tables(comparison: Comparison) -> list[Table]:
    """Return the table of a setting; an empty list if nothing was loaded in place."""
    methods = comparison.setting.methods
    if not any(method.load_in_place() for method in methods):
        return []
    headings = (
        "method", "load in place", "time [s]", "bandwidth [GB/s]", "of ceiling", "CPU [s]", "cores", "memory [MiB]",
        "memory, load [MiB]",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for method in methods:
        operation = method.load_in_place()
        if operation is None:
            continue
        usage, plain = method.usage_of(operation), method.usage_of(method.cold_load())
        rows.append(
            (
                method.label,
                operation.cache,
                method[operation],
                Number(usage.gbps, 3),
                Part(usage.of_ceiling),
                Number(usage.cpu_s),
                Number(usage.cores, 1),
                Number(usage.extra_bytes / 2**20, 0),
                Number(plain.extra_bytes / 2**20, 0),
            )
        )
    unable = [method.label for method in methods if method.facts.get("in_place") == "no"]
    left_out = [f"left out, because these strategies can't load in place: {', '.join(unable)}"] if unable else []
    without = [m.label for m in methods if m.load_in_place() is None and m.label not in unable]
    left_out += [f"left out, for want of a valid load in place: {', '.join(without)}"] if without else []
    return [Table("in_place", f"Load in place: {comparison.setting}", headings, tuple(rows), (_WHAT, *left_out))]
