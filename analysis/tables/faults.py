"""Makes the table of what a checkpoint survives: methods in their uses against kinds of faults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analysis.tables.table import MISSING, Example, Outcomes, Table, counted
from jobs.faults import outcomes
from jobs.faults.outcomes import FAULTS, RIGHT, USES, VERDICTS, FaultLog

_NOT_TRIED = "not tried"

_VERDICTS = (
    "right: the restart has the newest state or, where its save was interrupted or failed, the one before it",
    "detected: the restart ends with an error",
    "silent: the restart goes on with other values, or with an older state although the save returned without an error",
    "a cell has its worst verdict, with the number of such cases of all that were tried",
)

_MEANINGS = {
    outcomes.ALONE: "as the library's users call it",
    outcomes.COMMITTED: "with this package's commit, by ckpt.save and ckpt.load",
    outcomes.POWER_CUT: "the machine loses power at any moment of the save, and what was not synced may be lost",
    outcomes.FAILED_CALL: "a system call of the save fails",
    outcomes.KILL: "the process is killed while it saves",
    outcomes.BIT_ROT: "one bit of a complete checkpoint is another",
}
"""Of uses and faults."""

_HOW_TO_REPEAT = (
    "listed below, silent ones first: the smallest case of the worst verdict of every cell that is not right, and the "
    "command that repeats the cell"
)


def faults_table(log: FaultLog) -> Table:
    """Return one row for every method and use, a column for every kind of fault, and the cases as examples."""
    cells = {(cell.method, cell.use, cell.fault): cell for cell in log.cells}
    faults = _sorted((cell.fault for cell in log.cells), FAULTS)
    uses = _sorted((cell.use for cell in log.cells), USES)
    methods = dict.fromkeys(cell.method for cell in log.cells)
    tried = {(cell.method, cell.use) for cell in log.cells}
    rows = [
        (
            (method, use),
            [
                cells.get((method, use, fault), outcomes.Cell(method, use, fault, skipped=_NOT_TRIED))
                for fault in faults
            ],
        )
        for method in methods
        for use in uses
        if (method, use) in tried
    ]
    footnotes = list(dict.fromkeys(_why_not(cell) for _, row in rows for cell in row if not cell.verdict))
    examples = tuple(_examples(log, [cell for _, row in rows for cell in row]))
    versions = ", ".join(f"{name} {version}" for name, version in log.versions.items())
    return Table(
        "faults",
        f"Faults: {log.study} on {log.target} ({log.filesystem}), a state of {log.state_bytes:,} bytes, "
        f"seed {log.seed}",
        ("method", "use", *map(_words, faults)),
        tuple(
            (*names, *(Outcomes(cell, () if cell.verdict else (footnotes.index(_why_not(cell)) + 1,)) for cell in row))
            for names, row in rows
        ),
        (
            f"versions: {versions or 'unknown'}",
            *_VERDICTS,
            *(f"{_words(name)}: {_MEANINGS[name]}" for name in (*uses, *faults) if name in _MEANINGS),
            *([_HOW_TO_REPEAT] if examples else []),
        ),
        tuple(footnotes),
        joined=True,
        examples=examples,
        headed=False,
    )


def _sorted(names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Return the names without repetition in the order of the known ones, before any other."""
    different = dict.fromkeys(names)
    return [*(name for name in known if name in different), *(name for name in different if name not in known)]


def _words(name: str) -> str:
    return name.replace("-", " ")


def _why_not(cell: outcomes.Cell) -> str:
    return cell.skipped or _NOT_TRIED


def _examples(log: FaultLog, cells: list[outcomes.Cell]) -> Iterator[Example]:
    """Yield the smallest case of every cell that isn't right, silent ones first."""
    for verdict in reversed(VERDICTS):
        for cell in cells:
            if cell.verdict == verdict != RIGHT:
                counts = ", ".join(f"{count} {word}" for word, count in counted(cell).items() if count)
                subject = f"{cell.method}, {cell.use}, {_words(cell.fault)}: {counts}"
                yield Example(subject, cell.case or MISSING, log.command_of(cell))
