"""Timing logs -> tidy pandas frames: `load("results/quick")`, one row per sample.

A result is a study's directory, a directory that holds several, one log, or a merged file. A job that was planned
and left no log is a row of `Results.jobs` too: nothing is silently dropped between the plan and the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import NoTimingLogsError, ResultsError
from analysis.logs import columns, merged, plausible
from analysis.logs.columns import Log
from analysis.logs.frames import Entry, Results, frames
from jobs import timing_log
from jobs.timing_log import MERGED, Header, Sample, TimingLogError, check_job_id

NO_LOG = "no log"
"""The status of a job that was planned and left no log."""

UNREADABLE = "unreadable"
"""The status of a job whose log can't be read."""

_KEYS = ["study", "job_id"]

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of known length, and may display the progress."""


def _without_display(items: Iterable[Any], count: int) -> Iterable[Any]:  # noqa: ARG001  # nothing is displayed
    return items


def load(results: Path | str | Sequence[Path | str], workers: int = 1) -> pd.DataFrame:
    """Read results into one tidy frame: a row per sample, with the attributes of its job and its state.

    The columns are those of the timing log's samples and header, with the state's as `state_*`; units and meanings of
    the samples' columns are in `.attrs["columns"]`. Jobs without a sample have no row: `load_results(...).jobs` has
    them. A value that a log gives as -1, unknown, is NaN.

    Args:
        results: where the logs are.
        workers: how many processes read; more than one only in a notebook, or in a program that begins with
            `if __name__ == "__main__"`.

    Raises:
        ResultsError: if the paths hold no results, or two logs claim to be the same job and differ.
    """
    loaded = load_results(results, workers)
    of_jobs = [name for name in loaded.jobs if name in _KEYS or name not in loaded.samples]
    tidy = loaded.samples.merge(loaded.jobs[of_jobs], on=_KEYS, how="left", validate="many_to_one")
    tidy.attrs["columns"] = {column.name: dict(column.metadata) for column in fields(Sample)}
    return tidy


def load_results(results: Path | str | Sequence[Path | str], workers: int = 1) -> Results:
    """Read results into frames, one per kind of row.

    Raises:
        ResultsError: if the paths hold no results, or two logs claim to be the same job and differ.
    """
    return frames(entries(results, workers))


def entries(
    results: Path | str | Sequence[Path | str], workers: int = 1, progress: Progress = _without_display
) -> list[Entry]:
    """List every job of the results, sorted by study and id; reading a job twice is harmless.

    Raises:
        NoTimingLogsError: if the paths hold no results.
        ResultsError: if two logs claim to be the same job and differ.
    """
    paths = [results] if isinstance(results, Path | str) else list(results)
    known: dict[tuple[str, str], Entry] = {}
    for path in paths:
        for entry in _entries_of(Path(path), workers, progress):
            key = (entry.study, entry.job_id)
            known[key] = _one_of(known[key], entry) if key in known else entry
    if not known:
        raise NoTimingLogsError(f"no timing logs in {', '.join(map(str, paths))}: expected logs/*.h5 or a merged file")
    return [known[key] for key in sorted(known)]


def _one_of(first: Entry, second: Entry) -> Entry:
    """Combine two entries for one job, whichever came first: a log counts for more than its absence."""
    if first.log is not None and second.log is not None and repr(first.log) != repr(second.log):
        raise ResultsError(
            f"two different logs claim to be job {first.job_id} of study {first.study}: give one of the studies "
            "another name, or analyse them one by one"
        )
    both = [first, second]
    chosen = max(both, key=lambda entry: (entry.log is not None, entry.status == UNREADABLE, entry.error))
    planned = max((entry.planned for entry in both), key=lambda job: (bool(job), json.dumps(job, sort_keys=True)))
    return replace(chosen, planned=planned)


def _entries_of(path: Path, workers: int, progress: Progress) -> Iterator[Entry]:
    if path.is_file():
        yield from _from_file(path)
    elif path.is_dir():
        planned = {plan.parent for pattern in ("plan.json", "*/plan.json") for plan in path.glob(pattern)}
        logged = {log.parent.parent for pattern in ("logs/*.h5", "*/logs/*.h5") for log in path.glob(pattern)}
        yield from _from_studies(sorted(planned | logged), workers, progress)
    else:
        raise ResultsError(f"{path} does not exist: expected a study's directory, a log, or a merged file")


def _from_studies(directories: Sequence[Path], workers: int, progress: Progress) -> Iterator[Entry]:
    awaited: list[tuple[str, str, dict[str, Any], Path]] = []
    for directory in directories:
        plan = _plan_of(directory)
        study = plan.get("study", {}).get("name", directory.resolve().name)
        planned = {job["id"]: job for job in plan.get("jobs", [])}
        logged = {path.stem: path for path in (directory / "logs").glob("*.h5") if not path.name.startswith(".")}
        for job_id in sorted(planned.keys() | logged.keys()):
            job = planned.get(job_id, {})
            if job_id in logged:
                awaited.append((study, job_id, job, logged[job_id]))
            else:
                yield Entry(study, job_id, None, job, NO_LOG, "planned, but it never reported")
    logs = columns.read_many([path for *_, path in awaited], workers)
    for (study, job_id, job, path), read in zip(awaited, progress(logs, len(awaited)), strict=True):
        log = read if isinstance(read, TimingLogError) else _possible(read, path)
        if isinstance(log, TimingLogError):
            yield Entry(study, job_id, None, job, UNREADABLE, str(log))
        elif job and (log.header.study, log.header.job_id) != (study, job_id):
            message = f"{path} is the log of another job, {log.header.job_id} of study {log.header.study}"
            yield Entry(study, job_id, None, job, UNREADABLE, message)
        else:
            yield _entry(log, job)


def _plan_of(directory: Path) -> dict[str, Any]:
    path = directory / "plan.json"
    if not path.exists():
        return {}
    try:
        plan = json.loads(path.read_text())
        name, jobs = plan["study"].get("name", ""), [_planned(job) for job in plan["jobs"]]
        if not isinstance(name, str):
            raise TypeError(f"the study's name is {name!r:.80}")  # noqa: TRY301  # one message for all that may be wrong
        return {"study": dict(plan["study"]), "jobs": jobs}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ResultsError(f"{path} is no plan of this package ({error})") from error


_PLANNED = {attribute.name: str(attribute.type) for attribute in fields(Header)}
"""The attributes that analysis takes from a planned job, and their types."""


def _planned(job: dict[str, Any]) -> dict[str, Any]:
    """Check a job of a plan: its id can't name a file elsewhere, and its attributes have the right types."""
    check_job_id(job["id"])
    for key in job.keys() & _PLANNED.keys():
        if type(job[key]) is not {"int": int, "str": str, "float": float}[_PLANNED[key]]:
            raise TypeError(f"{key} of the job {job['id']} is {job[key]!r:.80}, and no {_PLANNED[key]}")
    return dict(job)


def _from_file(path: Path) -> Iterator[Entry]:
    try:
        with timing_log.opened(path, MERGED) as file:
            is_merged = file.attributes.get("schema") == merged.SCHEMA
            jobs = list(merged.read(file, path)) if is_merged else []
    except TimingLogError as error:
        what = f"{path} is neither a timing log nor a merged file ({error.__cause__})" if error.__cause__ else error
        raise ResultsError(str(what)) from error
    for job, log in jobs:
        checked = log if log is None else _possible(log, path)
        if isinstance(checked, TimingLogError):
            yield Entry(**job | {"log": None, "status": UNREADABLE, "error": str(checked)})
        else:
            yield _entry(checked, job["planned"]) if checked is not None else Entry(log=None, **job)
    if not is_merged:
        try:
            yield _entry(plausible.check(columns.read(path), str(path)), {})
        except TimingLogError as error:
            raise ResultsError(str(error)) from error


def _possible(log: Log, path: Path) -> Log | TimingLogError:
    try:
        return plausible.check(log, str(path))
    except TimingLogError as error:
        return error


def _entry(log: Log, planned: dict[str, Any]) -> Entry:
    return Entry(log.header.study, log.header.job_id, log, planned, log.header.status, log.header.error)
