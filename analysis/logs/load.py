"""Timing logs -> tidy pandas frames: `load("results/quick")`, one row for each sample.

A result is a study's directory, a directory that holds several, one log, or a merged file. A job that was planned
and left no log is a row of `Results.jobs` too: nothing is silently dropped between the plan and the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import ResultsError
from analysis.logs import columns, merged, plausible
from analysis.logs.columns import KINDS, TABLES, Log
from jobs import timing_log
from jobs.timing_log import MERGED, Header, Sample, TimingLogError, check_job_id

NO_LOG = "no log"
"""The status of a job that was planned and left no log."""

UNREADABLE = "unreadable"
"""The status of a job whose log can't be read."""

_KEYS = ["study", "job_id"]

_SHARED = [*_KEYS, "label", "target", "round", "nodes", "tasks_per_node"]
"""What each row says of its job."""

_DTYPES = {"int": "int64", "float": "float64", "bool": "bool", "str": "str"}

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes on what it is given, of which there will be so many, and may show how far it is."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a set of logs holds.

    Attributes:
        jobs: one row per job: the log's header, `/state` as `state_*`, and the status `no log` or `unreadable`
            where there is nothing to read.
        samples: one row per sample (`jobs.timing_log.Sample`), with the job's `study`, `job_id`, `label`,
            `target`, `round`, `nodes`, `tasks_per_node`.
        disk: one row per trial (`jobs.timing_log.DiskUse`), with the same.
        ceiling: what the target did by itself (`jobs.timing_log.Ceiling`), with the same.
        ranks: one row per process (`jobs.timing_log.Rank`), with the same; none in logs of before there were several.
    """

    jobs: pd.DataFrame
    samples: pd.DataFrame
    disk: pd.DataFrame
    ceiling: pd.DataFrame
    ranks: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Entry:
    """One job of the results: its log, or why there is none."""

    study: str
    job_id: str
    log: Log | None
    planned: dict[str, Any]
    """The job as the plan has it; empty where no plan is known."""
    status: str
    error: str


def _silently(found: Iterable[Any], count: int) -> Iterable[Any]:  # noqa: ARG001  # it has nothing to show
    return found


def load(results: Path | str | Sequence[Path | str], workers: int = 1) -> pd.DataFrame:
    """Read results into one tidy frame: a row for each sample, with what is known of its job and its state.

    The columns are those of the timing log's samples and header, with the state's as `state_*`; units and meanings of
    the samples' columns stand in `.attrs["columns"]`. Jobs without a sample have no row: `results` has them.

    Args:
        results: where the logs are.
        workers: how many processes read; more than one only in a notebook, or in a program that begins with
            `if __name__ == "__main__"`.

    Raises:
        ResultsError: if there are none, or two logs claim to be the same job and differ.
    """
    found = load_results(results, workers)
    facts = [name for name in found.jobs if name in _KEYS or name not in found.samples]
    tidy = found.samples.merge(found.jobs[facts], on=_KEYS, how="left", validate="many_to_one")
    tidy.attrs["columns"] = {each.name: dict(each.metadata) for each in fields(Sample)}
    return tidy


def load_results(results: Path | str | Sequence[Path | str], workers: int = 1) -> Results:
    """Read results into frames, one for each kind of row.

    Raises:
        ResultsError: if there are none, or two logs claim to be the same job and differ.
    """
    return frames(entries(results, workers))


def entries(
    results: Path | str | Sequence[Path | str], workers: int = 1, progress: Progress = _silently
) -> list[Entry]:
    """Every job of the results, sorted by study and id; reading a job twice is harmless.

    Raises:
        ResultsError: if there are none, or two logs claim to be the same job and differ.
    """
    paths = [results] if isinstance(results, Path | str) else list(results)
    found: dict[tuple[str, str], Entry] = {}
    for path in paths:
        for entry in _entries_of(Path(path), workers, progress):
            key = (entry.study, entry.job_id)
            found[key] = _one_of(found[key], entry) if key in found else entry
    if not found:
        raise ResultsError(f"no timing logs in {', '.join(map(str, paths))}: expected logs/*.h5 or a merged file")
    return [found[key] for key in sorted(found)]


def _one_of(first: Entry, second: Entry) -> Entry:
    """What two entries for one job say together, whichever came first: a log says more than its absence."""
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
    for (study, job_id, job, path), found in zip(awaited, progress(logs, len(awaited)), strict=True):
        log = found if isinstance(found, TimingLogError) else _possible(found, path)
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


_PLANNED = {each.name: str(each.type) for each in fields(Header)}
"""What analysis takes from a planned job, and its type."""


def _planned(job: dict[str, Any]) -> dict[str, Any]:
    """A job as a plan has it, once its id names no file elsewhere, and what is taken from it is of its type."""
    check_job_id(job["id"])
    for key in job.keys() & _PLANNED.keys():
        if type(job[key]) is not {"int": int, "str": str, "float": float}[_PLANNED[key]]:
            raise TypeError(f"{key} of the job {job['id']} is {job[key]!r:.80}, and no {_PLANNED[key]}")
    return dict(job)


def _from_file(path: Path) -> Iterator[Entry]:
    try:
        with timing_log.opened(path, MERGED) as file:
            schema = file.attrs.get("schema")
            is_merged = isinstance(schema, str) and schema == merged.SCHEMA
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


def frames(found: Sequence[Entry]) -> Results:
    """The tidy frames of these jobs."""
    logs = [entry.log for entry in found if entry.log is not None]
    tables = {name: _frame(name, logs) for name in TABLES}
    tables["samples"] = _with_load_numbers(plausible.judged(tables["samples"]))
    return Results(jobs=pd.DataFrame([_job_row(entry) for entry in found]), **tables)


def _frame(name: str, logs: Sequence[Log]) -> pd.DataFrame:
    """One table of all logs; its dtypes are said, not guessed: they are the same where there are no rows."""
    lengths = [len(log.tables[name]) for log in logs]
    data: dict[str, Any] = {}
    for each in (each for key in _SHARED for each in fields(Header) if each.name == key):
        values = np.array([getattr(log.header, each.name) for log in logs], object)
        data[each.name] = pd.Series(np.repeat(values, lengths), dtype=_DTYPES[str(each.type)])
    vocabulary, whole = columns.joined(name, logs)
    floats = iter(columns.joined_floats(name, logs))
    integers = iter(whole)
    words = np.array([*vocabulary, ""], object)
    for column, kind in KINDS[name].items():
        values = next(floats) if kind == "float" else next(integers)
        data[column] = pd.Series(words[values] if kind == "str" else values, dtype=_DTYPES[kind])
    return pd.DataFrame(data)


def _with_load_numbers(samples: pd.DataFrame) -> pd.DataFrame:
    """Number the loads of logs that were written without `load_number`: cold ones 0, warm ones 1.

    Where a trial has several of a kind, cold ones get the even numbers and warm ones the odd ones. So a rank that
    lacks its cold load has its warm one under the same number as the other ranks.
    """
    numbers = samples["load_number"].copy()
    unnumbered = (samples["operation"] == "load") & (numbers < 0)
    loads = samples[unnumbered]
    warm = loads["cache"] == "warm"
    operation = [loads[key] for key in (*_KEYS, "trial", "phase", "rank")]
    numbers[unnumbered] = 2 * loads.groupby([*operation, warm], sort=False).cumcount() + warm
    return samples.assign(load_number=numbers)


def _job_row(entry: Entry) -> dict[str, Any]:
    if entry.log is None:
        blank: dict[str, Any] = dict.fromkeys((each.name for each in fields(Header)), None)
        blank["label"] = entry.job_id
        known = {key: entry.planned.get(key) for key in blank.keys() & entry.planned.keys()}
        return {
            **blank, **known,
            "study": entry.study, "job_id": entry.job_id, "status": entry.status, "error": entry.error,
        }  # fmt: skip
    described = entry.log.attributes["state"]
    state = {f"state_{key.removeprefix('state_')}": value for key, value in described.items()}
    if described:
        state = _BEFORE_SHARDING | state
    return {**entry.log.header_facts(), **state, **_circumstances(entry.log)}


_BEFORE_SHARDING = {"state_sharding": "dim0", "state_contents": "weights"}
"""What holds of the states of logs that don't say it."""


def _circumstances(log: Log) -> dict[str, Any]:
    """The facts about a job that decide what it may be compared with, and how far it can be trusted."""
    machine, storage = log.attributes["provenance"], log.attributes["storage"]
    memory = machine.get("memory_bytes")
    kind = [str(machine.get("cpu", "unknown CPU")), f"{machine.get('cpus_usable', '?')} CPUs"]
    kind += [f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) else "unknown memory"]
    facts = (
        "packages", "python", "code_version", "host", "kernel", "cpu_governor", "clock_source", "cgroup_limits",
        "modules", "steal_share", "dirty_bytes_before", "node_local",
    )  # fmt: skip
    stored = ("filesystem", "source", "options", "device", "layout", "cache_caveat")
    return {
        **{key: machine[key] for key in facts if key in machine},
        **{f"storage_{key}": storage[key] for key in stored if key in storage},
        "node_type": ", ".join(kind),
        "cold_loads": "unproven" if storage.get("cache_caveat") else "proven where said",
    }
