"""Sets the targets of a study side by side: save and load in GB/s, and ratios to a reference target."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.errors import ResultsError
from analysis.logs.claims import PROVEN
from analysis.measures.differences import Difference, differences
from analysis.measures.groups import MUST_AGREE
from analysis.measures.method import Method
from analysis.measures.operation import COLD_LOADS, Operation
from analysis.measures.setting import Setting
from analysis.measures.statistics import UNKNOWN, geometric_mean
from analysis.measures.trials import NO_TRIALS, Trials
from analysis.tables.methods import notes_on_verdicts
from analysis.tables.table import MISSING, Cell, Estimate, Marked, Number, Ratio, Table

_MAY_DIFFER = {"cold_loads", "durability"}
"""What can be proven on one filesystem and not on another: saves and loads are compared, and ratios marked."""

_HOW_RATED = (
    "the state's bytes over the median time, GB = 10^9 bytes, with the 95 % bootstrap interval; a save lasts until it "
    "is committed, a load until every byte is in memory; the load is the coldest that was measured; ratios are of "
    "GB/s: more is faster"
)

_UNLIKE_LOADS = "loads of different kinds: part of the ratio may be a cache, and not the storage"
_UNLIKE_SAVES = "saves that are proven durable on one target only: part of the ratio may be that less was stored"


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a method that is nearest to one from storage, warm ones left out."""

    kind: Operation | None
    """None without a valid trial."""
    trials: Trials


def coldest_load(method: Method | None) -> Load:
    """Return the coldest load that a method measured."""
    kinds = (load for load in COLD_LOADS if method and len(method[load]))
    kind = next(kinds, None)
    return Load(kind, method[kind] if method and kind else NO_TRIALS)


def targets_tables(settings: Sequence[Setting], reference: str = "") -> list[Table]:
    """Return one table per study and scale that has several targets.

    Args:
        settings: of any studies.
        reference: the target that the others are set against; by default the first of the study.

    Raises:
        ResultsError: if there is no target of that name.
    """
    known = sorted({setting.target for setting in settings})
    timed = [setting for setting in settings if setting.loop is None]
    if reference and reference not in known:
        raise ResultsError(f"no target is called {reference!r}: name one of {', '.join(known)}")
    return [_table(title, together, left_out, reference) for title, together, left_out in comparable(timed)]


def comparable(settings: Sequence[Setting]) -> Iterator[tuple[str, list[Setting], list[str]]]:
    """Yield study and scale, the settings of its targets that agree in all else, and which ones are left out."""

    def key(setting: Setting) -> tuple[str, int, int]:
        return setting.study, setting.nodes, setting.tasks_per_node

    for (study, nodes, tasks), members in itertools.groupby(sorted(settings, key=key), key=key):
        group = list(members)
        if len({setting.target for setting in group}) > 1:
            yield f"{study}, {nodes}x{tasks}", *_agreeing(group)


def _agreeing(group: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Choose the largest set of settings that agree, one per target, and note which ones are left out."""
    keys = [key for key in MUST_AGREE if key not in _MAY_DIFFER]

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


@dataclass(frozen=True, slots=True)
class _Row:
    """One method on one target."""

    target: str
    label: str
    save: Trials
    durable: bool
    load: Load


def _table(title: str, settings: Sequence[Setting], left_out: Sequence[str], wanted: str) -> Table:
    reference = wanted or settings[0].target
    labels = list(dict.fromkeys(method.label for setting in settings for method in setting.methods))
    rows = {(label, setting.target): _row(label, setting) for label in labels for setting in settings}
    bases = {label: rows[label, reference] for label in labels if (label, reference) in rows}
    others = [key for key in rows if key[0] in bases and key[1] != reference]
    saves = differences([(bases[key[0]].save, rows[key].save) for key in others], [row.save for row in rows.values()])
    loads = differences(
        [(bases[key[0]].load.trials, rows[key].load.trials) for key in others],
        [row.load.trials for row in rows.values()],
    )
    of_save, of_load = (dict(zip(others, kind, strict=True)) for kind in (saves, loads))
    unlike = {key: notes for key in others if (notes := _unlike(rows[key], bases[key[0]]))}
    footnotes = tuple(dict.fromkeys(note for notes in unlike.values() for note in notes))
    marks = {key: tuple(footnotes.index(note) + 1 for note in notes) for key, notes in unlike.items()}
    cells = [_cells(row, of_save.get(key), of_load.get(key), marks.get(key, ())) for key, row in rows.items()]
    targets = [setting.target for setting in settings if setting.target != reference]
    means = [mean for target in targets for mean in _mean(target, labels, (of_save, of_load), marks)]
    headings = (
        "method", "target", "save [GB/s]", f"save over {reference}", "load [GB/s]", f"load over {reference}",
        "saves durable", "the load was",
    )  # fmt: skip
    absent = [] if bases else [f"no ratios: {reference} is not among these targets"]
    below = (_HOW_RATED, *notes_on_verdicts([*saves, *loads]), *absent, *left_out)
    return Table("targets", f"Targets: {title}", headings, (*cells, *means), below, footnotes)


def _row(label: str, setting: Setting) -> _Row:
    method = setting.method(label)
    saves = method[Operation.SAVE] if method else NO_TRIALS
    return _Row(setting.target, label, saves, setting.durability == PROVEN, coldest_load(method))


def _unlike(one: _Row, other: _Row) -> list[str]:
    """Return in what the sides of a ratio differ besides the target."""
    saves = len(one.save) and len(other.save) and one.durable is not other.durable
    kinds = {one.load.kind, other.load.kind} - {None}
    return [*([_UNLIKE_SAVES] if saves else []), *([_UNLIKE_LOADS] if len(kinds) > 1 else [])]


def _cells(row: _Row, save: Difference | None, load: Difference | None, marks: tuple[int, ...]) -> tuple[Cell, ...]:
    return (
        row.label,
        row.target,
        Estimate(row.save.gbps(), 3),
        _ratio(save),
        Estimate(row.load.trials.gbps(), 3),
        _ratio(load),
        ("proven" if row.durable else "unproven") if len(row.save) else MISSING,
        Marked(row.load.kind.cache if row.load.kind else MISSING, marks),
    )


def _ratio(difference: Difference | None) -> Cell:
    if difference is None:
        return Ratio(UNKNOWN, "", math.nan)
    return Ratio(difference.ratio, difference.verdict("faster", "slower"), difference.corrected_p)


def _mean(
    target: str,
    labels: Sequence[str],
    differences_of: Sequence[Mapping[tuple[str, str], Difference]],
    marks: Mapping[tuple[str, str], tuple[int, ...]],
) -> Iterator[tuple[Cell, ...]]:
    """Average the ratios of saves and of loads geometrically, over the methods that both targets measured."""
    ratios = [[of[label, target].ratio.estimate for label in labels if (label, target) in of] for of in differences_of]
    saves, loads = ([ratio for ratio in kind if ratio > 0] for kind in ratios)
    if max(len(saves), len(loads)) > 1:
        over = f"{len(saves)}" if len(saves) == len(loads) else f"{len(saves)} and {len(loads)}"
        mark = tuple(sorted({number for label in labels for number in marks.get((label, target), ())}))
        means = (Number(geometric_mean(kind)) for kind in (saves, loads))
        yield (f"geometric mean of {over}", target, "", next(means), "", next(means), "", Marked("", mark))
