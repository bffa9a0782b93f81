"""Reads what came of the faults of studies, from `faults.json` in their directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.errors import ResultsError
from jobs.faults import outcomes
from jobs.faults.outcomes import FILE, FaultLog


def fault_logs(results: Sequence[Path]) -> list[FaultLog]:
    """Read the file of every study in the results; an empty list if no study has one.

    Args:
        results: studies' directories, directories of studies, or such files; other files are left out.

    Raises:
        ResultsError: if a path does not exist, or a file can't be read or is damaged.
    """
    return [_read(path) for path in dict.fromkeys(path for given in results for path in _files(given))]


def required_fault_logs(results: Sequence[Path]) -> list[FaultLog]:
    """Read the file of every study in the results, as `fault_logs` does.

    Raises:
        ResultsError: also if no study has one.
    """
    if not results:
        raise ResultsError("name at least one RESULTS: the directory of a study whose faults were tried")
    logs = fault_logs(results)
    if not logs:
        paths = ", ".join(map(str, results))
        raise ResultsError(f"no {FILE} in {paths}: `python -m jobs faults STUDY` tries a study's faults and writes it")
    return logs


def _files(given: Path) -> Iterator[Path]:
    if not given.exists():
        raise ResultsError(f"{given} does not exist: expected a study's directory, or a directory of studies")
    if given.is_dir():
        yield from sorted(path for pattern in (FILE, f"*/{FILE}") for path in given.glob(pattern))
    elif given.name == FILE:
        yield given


def _read(path: Path) -> FaultLog:
    try:
        log = outcomes.read(path)
        _check(log)
    except OSError as error:
        raise ResultsError(f"can't read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        message = f"{path} is damaged, or no file of `python -m jobs faults STUDY` ({error}): run that command again"
        raise ResultsError(message) from error
    return log


def _check(log: FaultLog) -> None:
    """Check what the types allow and no study has.

    Raises:
        ValueError: if there is any of it.
    """
    cells = Counter((cell.method, cell.use, cell.fault) for cell in log.cells)
    for (method, use, fault), count in cells.items():
        if count > 1:
            raise ValueError(f"it has {count} cells of {method}, {use}, {fault}")
    for cell in log.cells:
        if min(cell.right, cell.detected, cell.silent) < 0:
            raise ValueError(f"{cell.method}, {cell.use}, {cell.fault}: a number of cases is negative")
