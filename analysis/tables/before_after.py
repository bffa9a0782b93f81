"""Two sets of results side by side, before and after or here and there: each method, and what else differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.logs.frames import Results
from analysis.measures.comparison import Comparison, compare
from analysis.measures.method import Method
from analysis.measures.relative import OPERATIONS, related, timed
from analysis.measures.statistics import geometric_mean
from analysis.tables.methods import HOW_MEASURED, HOW_TESTED_BETWEEN, notes_on_tests, where
from analysis.tables.table import Cell, Marked, Number, Ratio, Share, Table

FACTS = {
    "study": "study",
    "state_model": "state: model",
    "state_tensors": "state: tensors",
    "state_parameters": "state: parameters",
    "state_bytes": "state: bytes",
    "state_dtypes": "state: dtypes",
    "state_values": "state: values",
    "state_digest": "state: digest",
    "state_contents": "state: contents",
    "state_sharding": "how ranks share the state",
    "load_ranks": "ranks that load (0: as many as save)",
    "read_shift": "nodes from where a share was written to where it is loaded",
    "trials_planned": "trials per job",
    "code_version": "this package",
    "python": "Python",
    "kernel": "kernel",
    "node_type": "kind of node",
    "host": "hosts",
    "cpu_governor": "CPU governor",
    "clock_source": "clock source",
    "cgroup_limits": "limits of the control group",
    "modules": "modules",
    "storage_filesystem": "filesystem",
    "storage_source": "mount source",
    "storage_options": "mount options",
    "storage_device": "device",
    "storage_layout": "stripes",
    "cold_loads": "cold loads",
}
"""The columns of `Results.jobs` that may explain a difference, and what the table calls them."""

_STATE = ("state_digest", "state_contents", "state_sharding", "load_ranks", "read_shift")
"""The keys of `Comparison.agreed` by which several comparisons of one target and scale find each other."""

_NOTHING = "(not known)"


@dataclass(frozen=True, slots=True)
class _Pair:
    """The comparisons of one target and scale on both sides."""

    first: Comparison
    second: Comparison

    def methods(self) -> list[tuple[Method, Method]]:
        """Those that both sides have: the second side's, then the first's."""
        found = ((self.second.method(method.label), method) for method in self.first.methods)
        return [(second, first) for second, first in found if second is not None]


def contrast(first: Results, second: Results, names: tuple[str, str] = ("A", "B")) -> list[Table]:
    """What the second results say against the first: every method on every target, and what else differs.

    Args:
        first: before, or here.
        second: after, or there.
        names: what the notes call the two.
    """
    sides = compare(first), compare(second)
    pairs, left_out = _paired(*sides)
    return [_of_methods(pairs, left_out, names), _of_circumstances(first, second, names)]


def _paired(first: Sequence[Comparison], second: Sequence[Comparison]) -> tuple[list[_Pair], list[str]]:
    """The comparisons that have one of the same target and scale on the other side, and notes on the rest."""

    def place(each: Comparison) -> tuple[str, int, int]:
        return each.target, each.nodes, each.tasks_per_node

    pairs, notes = [], []
    for key in sorted({place(each) for each in (*first, *second)}):
        here, there = ([each for each in side if place(each) == key] for side in (first, second))
        if len(here) == len(there) == 1:
            pairs.append(_Pair(here[0], there[0]))
            continue
        for each in here:
            other = next((other for other in there if _state(other) == _state(each)), None)
            if other is None:
                notes.append(f"only in A: {where(each)}")
            else:
                pairs.append(_Pair(each, other))
                there.remove(other)
        notes += [f"only in B: {where(each)}" for each in there]
    return pairs, notes


def _state(comparison: Comparison) -> tuple[str | None, ...]:
    """What is saved, and by whom it is loaded."""
    return tuple(comparison.agreed.get(key) for key in _STATE)


def _of_methods(pairs: Sequence[_Pair], left_out: Sequence[str], names: tuple[str, str]) -> Table:
    both = [(pair, methods) for pair in pairs for methods in pair.methods()]
    found = related([methods for _, methods in both], shared_rounds=False)
    rows: list[tuple[Cell, ...]] = []
    footnotes: list[str] = []
    for name, operation in OPERATIONS.items():
        ratios = []
        for (pair, (second, first)), relative in zip(both, found, strict=True):
            if not any(timed(method, name).count or timed(method, name).invalid for method in (first, second)):
                continue
            difference = relative.difference(name)
            ratios.append(difference.ratio.estimate)
            marks = _marks(pair, first, second, footnotes)
            verdict = Ratio(difference.ratio, difference.verdict(), difference.corrected_p)
            at = f"{pair.first.target}, {pair.first.nodes}x{pair.first.tasks_per_node}"
            row = (Marked(first.label, marks), at, operation, timed(first, name), timed(second, name), verdict)
            rows.append((*row, Share(relative.size - 1)))
        if len(ratios) > 1:
            mean = geometric_mean(ratios)
            rows.append(("geometric mean", "all", operation, "", "", Number(mean), ""))
    headings = ("method", "target", "operation", "A [s]", "B [s]", "B / A", "size, B against A")
    told = [*_absent(pairs), *left_out]
    notes = (f"A is {names[0]}; B is {names[1]}", HOW_MEASURED, *notes_on_tests(found, HOW_TESTED_BETWEEN), *told)
    return Table("methods", "B against A", headings, tuple(rows), notes, tuple(footnotes))


def _marks(pair: _Pair, first: Method, second: Method, footnotes: list[str]) -> tuple[int, ...]:
    """The numbers of the footnotes that belong to a row: unequal states, jobs that failed, samples that don't count."""
    told = [f"A: {first.label}: {problem}" for problem in first.problems]
    told += [f"B: {second.label}: {problem}" for problem in second.problems]
    told = [where(pair.first), *told] if pair.first.apart else told
    states = [side.agreed.get("state_digest") for side in (pair.first, pair.second)]
    if states[0] != states[1]:
        told.insert(0, f"{pair.first.target}: A and B saved different states, which is part of the ratio")
    elif _state(pair.first) != _state(pair.second):
        told.insert(0, f"{pair.first.target}: A and B shared the state among their ranks differently, or loaded it so")
    footnotes += [each for each in told if each not in footnotes]
    return tuple(footnotes.index(each) + 1 for each in told)


def _absent(pairs: Sequence[_Pair]) -> Iterator[str]:
    for pair in pairs:
        labels = [{method.label for method in side.methods} for side in (pair.first, pair.second)]
        for name, only in (("A", labels[0] - labels[1]), ("B", labels[1] - labels[0])):
            if only:
                yield f"only in {name}, target {pair.first.target}: {', '.join(sorted(only))}"


def _of_circumstances(first: Results, second: Results, names: tuple[str, str]) -> Table:
    """Each fact in which the two differ, with both values; those of storage for each target."""
    rows: list[tuple[Cell, ...]] = []
    targets = sorted({str(target) for side in (first, second) for target in side.jobs["target"].dropna()})
    for key, words in FACTS.items():
        for target in targets if key.startswith("storage_") else [""]:
            values = [_values(side.jobs, key, target) for side in (first, second)]
            if values[0] != values[1]:
                rows.append((f"{words}, {target}" if target else words, *values))
    packages = [_packages(side.jobs) for side in (first, second)]
    for package in sorted({*packages[0], *packages[1]}):
        versions = [side.get(package, _NOTHING) for side in packages]
        if versions[0] != versions[1]:
            rows.append((f"package {package}", *versions))
    rounds = [str(side.jobs["round"].nunique()) for side in (first, second)]
    if rounds[0] != rounds[1]:
        rows.append(("rounds", *rounds))
    notes = (
        f"A is {names[0]}; B is {names[1]}",
        "of what the logs know: what differs here may be the reason, or part of it",
    )
    return Table("circumstances", "What else differs", ("what", "A", "B"), tuple(rows), notes)


def _values(jobs: pd.DataFrame, key: str, target: str) -> str:
    if key not in jobs:
        return _NOTHING
    chosen = jobs[jobs["target"] == target] if target else jobs
    values = sorted({_plain(value) for value in chosen[key].dropna()})
    return "; ".join(values) or _NOTHING


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _packages(jobs: pd.DataFrame) -> dict[str, str]:
    """The versions of each package, as the jobs recorded them."""
    found: dict[str, set[str]] = {}
    for text in set(jobs["packages"].dropna()) if "packages" in jobs else ():
        try:
            versions = dict(json.loads(text))
        except (ValueError, TypeError):
            versions = {"(as recorded)": text}
        for package, version in versions.items():
            found.setdefault(str(package), set()).add(str(version))
    return {package: "; ".join(sorted(versions)) for package, versions in found.items()}
