"""Finds values that can't have been measured: such a sample isn't valid; a log with other impossible facts is refused.

Whoever writes a log may write any number, and a median over -1 s or 1e300 s would be shown like any other.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.logs.columns import FLOATS, KINDS, WHOLE, Log
from jobs.timing_log import TABLES, TimingLogError

_LONGEST_S = 1e9
"""32 years: longer than any job."""

_MOST_BYTES = 2**60
_MOST_PROCESSES = 1_000_000
_SLACK = 1.001
"""A part ends a moment after the total that it belongs to, by the clock's resolution."""

_HEADER_RANGES = {
    "round": (0, 1_000_000),
    "nodes": (1, _MOST_PROCESSES),
    "tasks_per_node": (1, _MOST_PROCESSES),
    "trials_planned": (0, 1_000_000),
    "load_ranks": (0, _MOST_PROCESSES),
    "read_shift": (-_MOST_PROCESSES, _MOST_PROCESSES),
    "clock_zero_unix_s": (-1e11, 1e11),
}

_NUMBERS = {"state_bytes": int, "steal_share": float, "memory_bytes": int}
"""Facts that analysis computes with, where a log has them, and their types."""


def check(log: Log, where: str) -> Log:
    """Return the log if the facts about its job are possible.

    Raises:
        TimingLogError: naming the impossible fact.
    """
    for name, (low, high) in _HEADER_RANGES.items():
        value = getattr(log.header, name)
        if not low <= value <= high:
            raise TimingLogError(f"{where} is impossible: its {name} is {value}, expected {low} to {high}")
    if log.header.nodes * log.header.tasks_per_node > _MOST_PROCESSES:
        raise TimingLogError(f"{where} is impossible: it has more than {_MOST_PROCESSES:,} processes")
    for name in ("strategy_facts", "strategy_options"):
        if not _is_object(getattr(log.header, name), of_texts=name == "strategy_facts"):
            raise TimingLogError(f"{where} is a damaged timing log: its {name} is no JSON object of texts")
    for facts in log.attributes.values():
        for name in facts.keys() & _NUMBERS.keys():
            if not isinstance(facts[name], _NUMBERS[name]):
                raise TimingLogError(f"{where} is a damaged timing log: its {name} is {str(facts[name])[:80]!a}")
    _check_tables(log, where)
    return log


def _is_object(text: str, *, of_texts: bool) -> bool:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (not of_texts or all(isinstance(text, str) for text in value.values()))


_UNKNOWN_AS_MINUS_ONE = {
    ("hooks", "trial"), ("blocks", "threads"), ("blocks", "descriptors"), ("saves", "dirty_pages"),
}  # fmt: skip
_UNKNOWN_AS_NAN = {
    ("saves", "commit_s"), ("saves", "synced_s"), ("saves", "drained_s"), ("saves", "cpu_s"), ("blocks", "cpu_s"),
    ("blocks", "helper_cpu_s"),
}  # fmt: skip


def _check_tables(log: Log, where: str) -> None:
    for table, column, values in _columns(log):
        if (table, column) == ("steps", "step"):
            continue  # below 0 it only warms up
        may_be_unknown = column.endswith(("_bytes", "_count")) or (table, column) in _UNKNOWN_AS_MINUS_ONE
        lowest = -1 if may_be_unknown else 0
        if column == "resident_fraction" or (table, column) in _UNKNOWN_AS_NAN:
            values = values[~np.isnan(values)]  # noqa: PLW2901  # NaN where nothing was read, and in earlier logs
        if len(values) and not (values.min() >= lowest and values.max() <= _MOST_BYTES):
            wrong = values.max() if values.min() >= lowest else values.min()
            raise TimingLogError(f"{where} is impossible: a {column} in its /{table} is {wrong}")


def _columns(log: Log) -> list[tuple[str, str, NDArray[Any]]]:
    """List the columns of numbers in all tables but the samples."""
    columns = []
    for table in TABLES.keys() - {"samples"}:
        rows = log.tables[table]
        for array, names in ((rows.whole, WHOLE[table]), (rows.floats, FLOATS[table])):
            for values, column in zip(array, names, strict=True):
                if KINDS[table][column] in {"int", "float"} and column != "start_s":
                    columns.append((table, column, values))
    return columns


def judged(samples: pd.DataFrame) -> pd.DataFrame:
    """Mark samples that can't have been measured as invalid; their reason says what is wrong."""
    wrong = pd.Series("", index=samples.index, dtype="str")

    def note(which: pd.Series, what: str, values: pd.Series) -> None:
        rows = which & samples["valid"] & (wrong == "")
        wrong.loc[rows] = values[rows].map(lambda value: f"impossible: {what} {value:g}").astype("str")

    durations = samples["duration_s"]
    note(~((durations >= 0) & (durations <= _LONGEST_S)), "its duration in s is", durations)
    note(~np.isfinite(samples["start_s"]) | (samples["start_s"].abs() > 1e10), "its start in s is", samples["start_s"])
    for column in ("state_bytes", "trial", "rank"):
        note((samples[column] < 0) | (samples[column] > _MOST_BYTES), f"its {column} is", samples[column])
    for column in samples.columns:
        values = samples[column]
        if column.endswith(("_bytes", "_calls", "_faults", "_pages")):
            note((values < -1) | (values > _MOST_BYTES), f"its {column} is", values)
        elif column in {"cpu_s", "user_s", "system_s", "resident_fraction"}:
            note(
                (values < 0) | (values > (1 if column == "resident_fraction" else math.inf)) | np.isinf(values),
                f"its {column} is",
                values,
            )
    total = samples["phase"] == "total"
    keys = [samples[key] for key in ("study", "job_id", "trial", "rank", "operation")]
    longest = durations.where(total & (durations >= 0)).groupby(keys).transform("max")
    note(durations > longest * _SLACK + 0.001, "longer than its whole operation: its duration in s is", durations)
    bad = wrong != ""
    return samples.assign(valid=samples["valid"] & ~bad, reason=samples["reason"].where(~bad, wrong))
