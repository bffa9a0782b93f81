"""Compares two sets of results, of two clusters or from before and after a change: methods, and what else differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.logs.claims import PROVEN
from analysis.logs.frames import Results
from analysis.measures.comparison import related
from analysis.measures.loop_differences import lost_differences
from analysis.measures.method import Method
from analysis.measures.operation import Operation
from analysis.measures.setting import Setting, settings
from analysis.measures.statistics import geometric_mean
from analysis.tables.lost import HOW_COMPARED_BETWEEN, HOW_JUDGED, HOW_LOST, at_same_interval, judged
from analysis.tables.methods import HOW_MEASURED, HOW_TESTED_BETWEEN, notes_on_tests
from analysis.tables.table import Cell, Estimate, Marked, Number, Ratio, Share, Table

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
    "storage_filesystem_version": "filesystem's version",
    "storage_source": "mount source",
    "storage_servers": "servers",
    "storage_options": "mount options",
    "storage_device": "device",
    "storage_layout": "layout of the directory",
    "storage_written_layout": "layout of a written file",
    "storage_capacity_bytes": "capacity in bytes",
    "storage_fsync_guarantee": "what fsync guarantees",
    "storage_durability_proof": "proof that saves are durable",
    "storage_cold_proof": "proof that loads come from storage",
    "cold_loads": "cold loads",
    "loop": "training loop",
}
"""The columns of `Results.jobs` that may explain a difference, with their names in the table."""

_STATE = ("state_digest", "state_contents", "state_sharding", "load_ranks", "read_shift", "loop")
"""The keys of `Setting.agreed` by which several settings of one target and scale are paired."""

_NOTHING = "(not known)"


@dataclass(frozen=True, slots=True)
class _Pair:
    """The settings of one target and scale on both sides."""

    first: Setting
    second: Setting

    def methods(self) -> list[tuple[Method, Method]]:
        """Pair the methods that both sides have: the second side's, then the first's."""
        pairs = ((self.second.method(method.label), method) for method in self.first.methods)
        return [(second, first) for second, first in pairs if second is not None]


def contrast(first: Results, second: Results, names: tuple[str, str] = ("A", "B")) -> list[Table]:
    """Compare the second results with the first: every method on every target, and what else differs.

    Args:
        first: the results that the second are compared with, A in the tables.
        second: the results that are compared with the first, B in the tables.
        names: the names of A and B in the notes.
    """
    pairs, left_out = _paired(settings(first), settings(second))
    return [*_compared(pairs, left_out, names), _circumstances(first, second, names)]


def _compared(pairs: Sequence[_Pair], left_out: Sequence[str], names: tuple[str, str]) -> list[Table]:
    """Compare what was timed; what was lost in training loops is a table of its own."""
    loops = [pair for pair in pairs if pair.first.loop or pair.second.loop]
    timed = [pair for pair in pairs if pair not in loops]
    tables = [_methods_table(timed, left_out, names)] if timed or not loops else []
    return [*tables, *([_lost_table(loops, [] if tables else left_out, names)] if loops else [])]


def _paired(first: Sequence[Setting], second: Sequence[Setting]) -> tuple[list[_Pair], list[str]]:
    """Pair the settings of both sides that have one target and scale, and list the others as notes."""

    def key(setting: Setting) -> tuple[str, int, int]:
        return setting.target, setting.nodes, setting.tasks_per_node

    pairs, notes = [], []
    for target_and_scale in sorted({key(setting) for setting in (*first, *second)}):
        in_first, in_second = (
            [setting for setting in side if key(setting) == target_and_scale] for side in (first, second)
        )
        if len(in_first) == len(in_second) == 1:
            pairs.append(_Pair(in_first[0], in_second[0]))
            continue
        for setting in in_first:
            number = next((n for n, other in enumerate(in_second) if _state(other) == _state(setting)), None)
            if number is None:
                notes.append(f"only in A: {setting}")
            else:
                pairs.append(_Pair(setting, in_second.pop(number)))
        notes += [f"only in B: {setting}" for setting in in_second]
    return pairs, notes


def _state(setting: Setting) -> tuple[str | None, ...]:
    """Return what identifies the saved state, how ranks share it, which of them load it, and the training loop."""
    return tuple(setting.agreed.get(key) for key in _STATE)


def _methods_table(pairs: Sequence[_Pair], left_out: Sequence[str], names: tuple[str, str]) -> Table:
    both = [(pair, methods) for pair in pairs for methods in pair.methods()]
    relatives = related([methods for _, methods in both], shared_rounds=False)
    rows: list[tuple[Cell, ...]] = []
    footnotes: list[str] = []
    for operation in Operation:
        ratios = []
        for (pair, (second, first)), relative in zip(both, relatives, strict=True):
            if operation not in first.operations and operation not in second.operations:
                continue
            difference = relative.operations[operation]
            ratios.append(difference.ratio.estimate)
            marks = _marks(pair, first, second, footnotes)
            verdict = Ratio(difference.ratio, difference.verdict(), difference.corrected_p)
            at = f"{pair.first.target}, {pair.first.scale}"
            row = (Marked(first.label, marks), at, operation.label, first[operation], second[operation], verdict)
            rows.append((*row, Share(relative.size - 1)))
        if len(ratios) > 1:
            mean = geometric_mean(ratios)
            rows.append(("geometric mean", "all", operation.label, "", "", Number(mean), ""))
    headings = ("method", "target", "operation", "A [s]", "B [s]", "B / A", "size, B against A")
    unpaired = [*_absent(pairs), *left_out]
    on_tests = notes_on_tests(relatives, HOW_TESTED_BETWEEN)
    notes = (f"A is {names[0]}; B is {names[1]}", HOW_MEASURED, *on_tests, *unpaired)
    return Table("methods", "B against A", headings, tuple(rows), notes, tuple(footnotes))


def _lost_table(pairs: Sequence[_Pair], left_out: Sequence[str], names: tuple[str, str]) -> Table:
    compared = [
        (pair, methods, sides)
        for pair in pairs
        for methods in pair.methods()
        for sides in at_same_interval(*methods)
    ]  # fmt: skip
    tests = lost_differences([(b.means, a.means) for *_, (b, a) in compared], shared_rounds=False)
    footnotes: list[str] = []
    rows: list[tuple[Cell, ...]] = [
        (
            Marked(first.label, _marks(pair, first, second, footnotes)),
            f"{pair.first.target}, {pair.first.scale}",
            Number(a.every, 0),
            judged(a.lost),
            judged(b.lost),
            judged(test),
            Estimate(a.latency),
            Estimate(b.latency),
        )
        for (pair, (second, first), (b, a)), test in zip(compared, tests, strict=True)
    ]
    headings = (
        "method", "target", "every [steps]", "A, lost per save [s]", "B, lost per save [s]", "B - A [s]",
        "A, latency [s]", "B, latency [s]",
    )  # fmt: skip
    notes = (
        f"A is {names[0]}; B is {names[1]}",
        HOW_LOST,
        HOW_JUDGED,
        HOW_COMPARED_BETWEEN,
        *_absent(pairs),
        *left_out,
    )
    return Table("lost", "Lost time, B against A", headings, tuple(rows), notes, tuple(footnotes))


def _marks(pair: _Pair, first: Method, second: Method, footnotes: list[str]) -> tuple[int, ...]:
    """Number a row's footnotes on unequal states, failed jobs and invalid trials; new ones are added to `footnotes`."""
    notes = [f"A: {first.label}: {problem}" for problem in first.problems]
    notes += [f"B: {second.label}: {problem}" for problem in second.problems]
    if pair.first.apart:
        notes.insert(0, str(pair.first))
    first_proof, second_proof = (side.durability == PROVEN for side in (pair.first, pair.second))
    states = [side.agreed.get("state_digest") for side in (pair.first, pair.second)]
    if states[0] != states[1]:
        notes.insert(0, f"{pair.first.target}: A and B saved different states, which is part of the ratio")
    elif pair.first.loop != pair.second.loop:
        notes.insert(0, f"{pair.first.target}: A and B saved beside different training loops")
    elif _state(pair.first) != _state(pair.second):
        notes.insert(0, f"{pair.first.target}: A and B differ in how ranks share the state, or in which ranks load it")
    if first_proof != second_proof:
        notes.insert(0, f"{pair.first.target}: saves are proven durable on one side only")
    footnotes += [note for note in notes if note not in footnotes]
    return tuple(footnotes.index(note) + 1 for note in notes)


def _absent(pairs: Sequence[_Pair]) -> Iterator[str]:
    for pair in pairs:
        labels = [{method.label for method in side.methods} for side in (pair.first, pair.second)]
        for name, only in (("A", labels[0] - labels[1]), ("B", labels[1] - labels[0])):
            if only:
                yield f"only in {name}, target {pair.first.target}: {', '.join(sorted(only))}"


def _circumstances(first: Results, second: Results, names: tuple[str, str]) -> Table:
    """List the facts in which the two results differ, with both values; facts of storage are listed per target."""
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
        "only what the logs record is compared; what differs here may be the reason, or part of it",
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
    """Return the versions of the packages, as the jobs recorded them."""
    recorded: dict[str, set[str]] = {}
    for text in set(jobs["packages"].dropna()) if "packages" in jobs else ():
        try:
            versions = dict(json.loads(text))
        except (ValueError, TypeError):
            versions = {"(as recorded)": text}
        for package, version in versions.items():
            recorded.setdefault(str(package), set()).add(str(version))
    return {package: "; ".join(sorted(versions)) for package, versions in recorded.items()}
