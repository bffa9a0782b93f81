"""Whether a job gets the memory that it needs: what Slurm gives where a study asks for none is often too little."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from jobs.cluster import slurm
from jobs.cluster.arrays import Batch
from jobs.errors import StudyError
from jobs.plan.loop import NONE, SYNC, THREAD
from jobs.plan.plan import Job

_LIBRARIES_BYTES = 300e6
"""A process with Python, torch, HDF5 and tensorstore: 265 MB resident, measured with torch 2.13 on Linux."""

_STATES = 2
"""What a rank holds while it loads: the state that it saved, to compare with, and the loaded one."""

_WITHOUT_A_COPY = frozenset({"", NONE, SYNC})
"""The ways to save in a training loop, or without one, that make no copy of the state."""

_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Memory:
    """What a node's processes need at least and what they get, in bytes; and what says so."""

    needed_bytes: float
    given_bytes: float
    origin: str


def of(batch: Batch) -> Memory | None:
    """The memory of an array's jobs on each of their nodes; None where Slurm does not limit it, or does not say."""
    needed = max(job.scale.processes_per_node * _of_a_rank(job) for job in batch.jobs)
    try:
        given = _given(batch)
    except StudyError:
        return None
    return None if given is None else Memory(needed, *given)


def _of_a_rank(job: Job) -> float:
    """What a rank needs, in bytes: where it saves behind a training loop, for a copy and perhaps a process as well."""
    behind = job.way not in _WITHOUT_A_COPY
    processes = 2 if behind and job.way != THREAD else 1
    return processes * _LIBRARIES_BYTES + (_STATES + behind) * job.rank_bytes


def _given(batch: Batch) -> tuple[float, str] | None:
    request, others = batch.slurm, batch.slurm.additional_parameters or {}
    cpus = (request.cpus_per_task or 1) * batch.jobs[0].scale.processes_per_node
    for key in ("mem", "mem-per-cpu"):
        if key in others:
            return _in_bytes(str(others[key]), cpus if key == "mem-per-cpu" else 1, f"{key} = {others[key]}")
    if request.mem_gb:
        return _in_bytes(f"{request.mem_gb}G", 1, f"mem_gb = {request.mem_gb:g}")
    if request.exclusive:
        return None  # with all CPUs of whatever node it gets
    partition = slurm.settings("partition", *filter(None, [request.partition]))
    config = slurm.settings("config")
    if "MEMORY" not in config.get("SelectTypeParameters", "").upper():
        return None
    for where in (partition, config):
        for key, times in (("DefMemPerCPU", cpus), ("DefMemPerNode", 1)):
            if where.get(key, "UNLIMITED") != "UNLIMITED":
                share = f" for each of {cpus} CPUs" if times > 1 else ""
                return _in_bytes(where[key], times, f"{key} = {where[key]} MB{share}")
    return None


def _in_bytes(text: str, times: int, origin: str) -> tuple[float, str] | None:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)B?", text.upper())
    if match is None or float(match[1]) == 0:  # 0: all that the node has
        return None
    return float(match[1]) * _UNITS[match[2]] * times, origin


def enough_gb(memory: Memory) -> int:
    """What to ask for, in GB, with some room."""
    return math.ceil(1.25 * memory.needed_bytes / 2**30)
