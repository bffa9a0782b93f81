"""Timing logs -> tidy pandas frames: `load("results/quick").samples`.

A result is a study's directory, a directory that holds several, one log, or a merged file. A job that was planned
and left no log is a row of `jobs` too: nothing is silently dropped between the plan and the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from analysis.errors import ResultsError
from jobs import timing_log
from jobs.errors import TimingLogError
from jobs.timing_log import Ceiling, DiskUse, Header, Sample, TimingLog

MERGED_SCHEMA = "ckpt-timing-logs"
MERGED_VERSION = 1

NO_LOG = "no log"
"""The status of a job that was planned and left no log."""

UNREADABLE = "unreadable"
"""The status of a job whose log can't be read."""

_KEYS = ["study", "job_id"]

_DTYPES = {"int": "int64", "float": "float64", "bool": "bool", "str": "str"}


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
    """

    jobs: pd.DataFrame
    samples: pd.DataFrame
    disk: pd.DataFrame
    ceiling: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Entry:
    """One job of the results: its log, or why there is none."""

    study: str
    job_id: str
    log: TimingLog | None
    planned: dict[str, Any]
    """The job as the plan has it; empty where no plan is known."""
    status: str
    error: str


def load(results: Path | str | Sequence[Path | str]) -> Results:
    """Read results into frames.

    Raises:
        ResultsError: if there are none, or two logs claim to be the same job and differ.
    """
    return frames(entries(results))


def entries(results: Path | str | Sequence[Path | str]) -> list[Entry]:
    """Every job of the results, sorted by study and id; reading a job twice is harmless.

    Raises:
        ResultsError: if there are none, or two logs claim to be the same job and differ.
    """
    paths = [results] if isinstance(results, Path | str) else list(results)
    found: dict[tuple[str, str], Entry] = {}
    for path in paths:
        for entry in _entries_of(Path(path)):
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


def _entries_of(path: Path) -> Iterator[Entry]:
    if path.is_file():
        yield from _from_file(path)
    elif path.is_dir():
        planned = {plan.parent for pattern in ("plan.json", "*/plan.json") for plan in path.glob(pattern)}
        logged = {log.parent.parent for pattern in ("logs/*.h5", "*/logs/*.h5") for log in path.glob(pattern)}
        for directory in sorted(planned | logged):
            yield from _from_study(directory)
    else:
        raise ResultsError(f"{path} does not exist: expected a study's directory, a log, or a merged file")


def _from_study(directory: Path) -> Iterator[Entry]:
    plan = _plan_of(directory)
    study = plan.get("study", {}).get("name", directory.resolve().name)
    planned = {job["id"]: job for job in plan.get("jobs", [])}
    logged = {path.stem: path for path in (directory / "logs").glob("*.h5") if not path.name.startswith(".")}
    for job_id in sorted(planned.keys() | logged.keys()):
        job = planned.get(job_id, {})
        if job_id not in logged:
            yield Entry(study, job_id, None, job, NO_LOG, "planned, but it never reported")
            continue
        try:
            log = timing_log.read(logged[job_id])
        except TimingLogError as error:
            yield Entry(study, job_id, None, job, UNREADABLE, str(error))
            continue
        found = log.header.study, log.header.job_id
        if job and found != (study, job_id):
            message = f"{logged[job_id]} is the log of another job, {found[1]} of study {found[0]}"
            yield Entry(study, job_id, None, job, UNREADABLE, message)
        else:
            yield _entry(log, job)


def _plan_of(directory: Path) -> dict[str, Any]:
    path = directory / "plan.json"
    if not path.exists():
        return {}
    try:
        plan = json.loads(path.read_text())
        return {"study": dict(plan["study"]), "jobs": [dict(job) for job in plan["jobs"] if job["id"]]}
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ResultsError(f"{path} is no plan of this package ({error})") from error


def _from_file(path: Path) -> Iterator[Entry]:
    try:
        timing_log.check_seal(path)
        with h5py.File(path, "r", locking="best-effort") as file:
            schema, version = file.attrs.get("schema"), file.attrs.get("schema_version")
            if schema != MERGED_SCHEMA:
                yield _entry(timing_log.read_from(file, str(path)), {})
                return
            if version != MERGED_VERSION:
                raise ResultsError(f"{path} has version {version} of the merged file; {MERGED_VERSION} is known here")
            for group in (job for study in file["jobs"].values() for job in study.values()):
                planned = json.loads(group.attrs["planned"])
                if "log" in group:
                    yield _entry(timing_log.read_from(group["log"], f"{path}:{group.name}"), planned)
                else:
                    attributes = group.attrs
                    yield Entry(
                        attributes["study"], attributes["job_id"], None, planned,
                        attributes["status"], attributes["error"],
                    )  # fmt: skip
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is neither a timing log nor a merged file ({error})") from error
    except TimingLogError as error:
        raise ResultsError(str(error)) from error


def _entry(log: TimingLog, planned: dict[str, Any]) -> Entry:
    return Entry(log.header.study, log.header.job_id, log, planned, log.header.status, log.header.error)


def frames(found: Sequence[Entry]) -> Results:
    """The tidy frames of these jobs."""
    jobs = pd.DataFrame([_job_row(entry) for entry in found])
    shared = [*_KEYS, "label", "target", "round", "nodes", "tasks_per_node"]
    logs = [entry.log for entry in found if entry.log is not None]
    return Results(
        jobs=jobs,
        samples=_rows([(log, log.samples) for log in logs], Sample, shared),
        disk=_rows([(log, log.disk) for log in logs], DiskUse, shared),
        ceiling=_rows([(log, log.ceiling) for log in logs], Ceiling, shared),
    )


def _rows(logs: Sequence[tuple[TimingLog, Sequence[Any]]], row: type, shared: list[str]) -> pd.DataFrame:
    of_the_job = [each for each in fields(Header) if each.name in shared]
    dtypes = {each.name: _DTYPES[str(each.type)] for each in (*of_the_job, *fields(row))}
    columns = shared + [each.name for each in fields(row)]
    records = [
        [getattr(log.header, key) for key in shared] + [getattr(record, each.name) for each in fields(row)]
        for log, rows in logs
        for record in rows
    ]
    # The dtypes are said, not guessed: they are the same where there are no rows.
    return pd.DataFrame(records, columns=pd.Index(columns)).astype(dtypes)


def _job_row(entry: Entry) -> dict[str, Any]:
    if entry.log is None:
        blank: dict[str, Any] = dict.fromkeys((each.name for each in fields(Header)), None)
        blank["label"] = entry.job_id
        known = {key: entry.planned.get(key) for key in blank.keys() & entry.planned.keys()}
        return {
            **blank, **known,
            "study": entry.study, "job_id": entry.job_id, "status": entry.status, "error": entry.error,
        }  # fmt: skip
    state = {f"state_{key.removeprefix('state_')}": value for key, value in entry.log.state.items()}
    return {**asdict(entry.log.header), **state, **_circumstances(entry.log)}


def _circumstances(log: TimingLog) -> dict[str, Any]:
    """The facts about a job that decide what it may be compared with, and how far it can be trusted."""
    machine = log.provenance
    memory = machine.get("memory_bytes")
    kind = [str(machine.get("cpu", "unknown CPU")), f"{machine.get('cpus_usable', '?')} CPUs"]
    kind += [f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) else "unknown memory"]
    caches = {sample.cache for sample in log.samples if sample.operation == "load"}
    facts = ("packages", "host", "kernel", "cpu_governor", "steal_share", "dirty_bytes_before", "node_local")
    return {
        **{key: machine[key] for key in facts if key in machine},
        "node_type": ", ".join(kind),
        "cold_loads": "unproven" if log.storage.get("cache_caveat") else "proven where said",
        "measures_ceiling": bool(log.ceiling),
        "caches": ", ".join(sorted(caches)),
    }
