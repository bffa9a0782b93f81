"""Jobs and their logs -> tidy pandas frames: one row per job, sample, checkpoint on disk, ceiling, rank, ..."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from analysis.logs import columns, plausible
from analysis.logs.claims import as_claimed, claims, with_cold_loads
from analysis.logs.columns import KINDS, Log
from jobs.timing_log import TABLES, Header

_SHARED = ["study", "job_id", "label", "target", "round", "nodes", "tasks_per_node"]
"""The attributes of the job that every row repeats."""

_DTYPES = {"int": "int64", "float": "float64", "bool": "bool", "str": "str"}

UNKNOWN_AS_MINUS_ONE = {
    "samples": (
        "peak_rss_bytes", "peak_extra_bytes", "device_read_bytes", "device_write_bytes", "read_calls", "write_calls",
        "minor_faults", "major_faults", "dirty_pages",
    ),
    "disk": ("directory_count",),
    "blocks": ("peak_memory_bytes", "end_memory_bytes", "threads", "descriptors"),
    "saves": ("dirty_pages",),
}  # fmt: skip
"""Columns of whole numbers in which a log writes -1 for an unknown value; in the frames it is NaN."""


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


@dataclass(frozen=True, slots=True)
class Results:
    """The contents of a set of logs. An unknown number is NaN.

    Attributes:
        jobs: one row per job: the log's header, `/state` as `state_*`, and the status `no log` or `unreadable`
            where there is nothing to read.
        samples: one row per sample (`jobs.timing_log.Sample`), with the job's `study`, `job_id`, `label`,
            `target`, `round`, `nodes`, `tasks_per_node`. Every load has a `load_number`.
        disk: one row per trial (`jobs.timing_log.DiskUse`), with the same attributes of the job.
        ceiling: one row per measurement of a ceiling (`jobs.timing_log.Ceiling`), with the same attributes.
        ranks: one row per process (`jobs.timing_log.Rank`), with the same attributes; none for logs written before
            jobs had several ranks.
        metadata: one row per rank and operation on small files (`jobs.timing_log.Metadata`), with the same attributes.
        hooks: one row per command that ran outside the clocks (`jobs.timing_log.Hook`), with the same attributes.
        blocks: one row per block of a training loop and rank (`jobs.timing_log.Block`), with the same attributes.
        steps: one row per step of a training loop and rank (`jobs.timing_log.Step`), with the same attributes.
        saves: one row per save of a training loop and rank (`jobs.timing_log.LoopSave`), with the same attributes.
    """

    jobs: pd.DataFrame
    samples: pd.DataFrame
    disk: pd.DataFrame
    ceiling: pd.DataFrame
    ranks: pd.DataFrame
    metadata: pd.DataFrame
    hooks: pd.DataFrame
    blocks: pd.DataFrame
    steps: pd.DataFrame
    saves: pd.DataFrame


def frames(entries: Sequence[Entry]) -> Results:
    """Put jobs and their logs into frames."""
    logs = [entry.log for entry in entries if entry.log is not None]
    tables = {name: _frame(name, logs) for name in TABLES}
    samples = _with_load_numbers(as_claimed(plausible.judged(tables["samples"]), logs))
    jobs = with_cold_loads(pd.DataFrame([_job_row(entry) for entry in entries]), samples)
    return Results(jobs=jobs, **tables | {"samples": samples})


def _frame(name: str, logs: Sequence[Log]) -> pd.DataFrame:
    """Join one table of all logs. The dtypes are set, not inferred, so that they are the same without any row."""
    lengths = [len(log.tables[name]) for log in logs]
    header_kinds = {attribute.name: str(attribute.type) for attribute in fields(Header)}
    data: dict[str, Any] = {}
    for key in _SHARED:
        values = np.array([getattr(log.header, key) for log in logs], object)
        data[key] = pd.Series(np.repeat(values, lengths), dtype=_DTYPES[header_kinds[key]])
    vocabulary, whole = columns.joined(name, logs)
    floats = iter(columns.joined_floats(name, logs))
    integers = iter(whole)
    words = np.array([*vocabulary, ""], object)
    for column, kind in KINDS[name].items():
        values = next(floats) if kind == "float" else next(integers)
        data[column] = pd.Series(words[values] if kind == "str" else values, dtype=_DTYPES[kind])
    for column in UNKNOWN_AS_MINUS_ONE.get(name, ()):
        data[column] = data[column].astype("float64").replace(-1, np.nan)
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
    keys = [loads[key] for key in ("study", "job_id", "trial", "phase", "rank")]
    numbers[unnumbered] = 2 * loads.groupby([*keys, warm], sort=False).cumcount() + warm
    return samples.assign(load_number=numbers)


def _job_row(entry: Entry) -> dict[str, Any]:
    if entry.log is None:
        blank: dict[str, Any] = dict.fromkeys((attribute.name for attribute in fields(Header)), None)
        blank["label"] = entry.job_id
        known = {key: entry.planned.get(key) for key in blank.keys() & entry.planned.keys()}
        return {
            **blank, **known, "planned_step": entry.planned.get("step") or None,
            "study": entry.study, "job_id": entry.job_id, "status": entry.status, "error": entry.error,
        }  # fmt: skip
    described = entry.log.attributes["state"]
    state = {f"state_{key.removeprefix('state_')}": value for key, value in described.items()}
    if described:
        state = _BEFORE_SHARDING | state
    return {**entry.log.header_facts(), **state, **_circumstances(entry.log)}


_BEFORE_SHARDING = {"state_sharding": "dim0", "state_contents": "weights"}
"""The attributes of a state in logs written before these attributes existed."""


def _circumstances(log: Log) -> dict[str, Any]:
    """Collect the facts that decide which jobs a job may be compared with, and how far it can be trusted."""
    machine, storage = log.attributes["provenance"], log.attributes["storage"]
    memory = machine.get("memory_bytes")
    kind = [str(machine.get("cpu", "unknown CPU")), f"{machine.get('cpus_usable', '?')} CPUs"]
    kind += [f"{memory / 2**30:.0f} GiB" if isinstance(memory, int) else "unknown memory"]
    facts = (
        "packages", "python", "code_version", "host", "kernel", "cpu_governor", "clock_source", "cgroup_limits",
        "modules", "steal_share", "dirty_bytes_before", "node_local", "loop_recorder_s", "loop_cores",
    )  # fmt: skip
    return {
        **{key: machine[key] for key in facts if key in machine},
        **{f"storage_{key}": storage[key] for key in _STORED if key in storage},
        "node_type": ", ".join(kind),
        "target_position": _target_position(machine.get("study"), log.header.target),
        # A job that has not built its state has not examined its target either: then there is no claim.
        **(claims(storage) if log.attributes["state"] else {}),
    }


_STORED = (
    "filesystem", "filesystem_version", "source", "servers", "options", "device", "layout", "written_layout",
    "volume", "capacity_bytes", "free_bytes", "fsync_guarantee", "durability_proof", "cold_proof", "cache_caveat",
    "drain_to",
)  # fmt: skip
"""The facts about the storage that are columns of the jobs."""


def _target_position(study: Any, target: str) -> float:
    """Return the position of a target in its study, from 0; NaN where the log doesn't have the study."""
    try:
        return float(list(json.loads(study)["targets"]).index(target))
    except (ValueError, TypeError, LookupError, RecursionError):
        return math.nan
