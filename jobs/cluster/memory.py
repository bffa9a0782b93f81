"""Whether a job gets the memory that it needs: what Slurm gives where a study asks for none is often too little."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
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
    if "mem" in others:
        return _in_bytes(str(others["mem"]), 1, f"mem = {others['mem']}")
    if request.mem_gb:
        return _in_bytes(f"{request.mem_gb}G", 1, f"mem_gb = {request.mem_gb:g}")
    partition, config = _partition(request.partition), slurm.settings("config")
    cpus = (request.cpus_per_task or 1) * batch.jobs[0].scale.processes_per_node
    # Such jobs have all CPUs of their nodes, and the memory that belongs to these.
    if (
        request.exclusive is True
        or partition["OverSubscribe"] == "EXCLUSIVE"
        or "linear" in config.get("SelectType", "")
    ):
        cpus = max(cpus, _cpus_of_a_node(partition["PartitionName"]))
    share = f" for each of {cpus} CPUs" if cpus > 1 else ""
    if "mem-per-cpu" in others:
        return _in_bytes(str(others["mem-per-cpu"]), cpus, f"mem-per-cpu = {others['mem-per-cpu']}{share}")
    if "MEMORY" in config.get("SelectTypeParameters", "").upper():
        for where in (partition, config):
            for key, times, per in (("DefMemPerCPU", cpus, share), ("DefMemPerNode", 1, "")):
                if where.get(key, "UNLIMITED") != "UNLIMITED":
                    return _in_bytes(where[key], times, f"{key} = {where[key]} MB{per}")
    return None


def _partition(name: str | None) -> Mapping[str, str]:
    """The settings of a partition, by default of the one that Slurm takes."""
    lines = slurm.ask("scontrol", "--oneliner", "show", "partition", *filter(None, [name])).splitlines()
    chosen = next((line for line in lines if name or "Default=YES" in line), "")
    settings = dict(re.findall(r"(\w+)=(\S+)", chosen))
    if not {"PartitionName", "OverSubscribe"} <= settings.keys():
        raise StudyError(f"scontrol does not describe the partition {name or 'that is the default'}")
    return settings


def _cpus_of_a_node(partition: str) -> int:
    """Of the partition's smallest node."""
    numbers = re.findall(r"\d+", slurm.ask("sinfo", "--noheader", f"--partition={partition}", "--format=%c"))
    return min(map(int, numbers), default=1)


def _in_bytes(text: str, times: int, origin: str) -> tuple[float, str] | None:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)B?", text.upper())
    if match is None or float(match[1]) == 0:  # 0: all that the node has
        return None
    return float(match[1]) * _UNITS[match[2]] * times, origin


def enough_gb(memory: Memory) -> int:
    """What to ask for, in GB, with some room."""
    return math.ceil(1.25 * memory.needed_bytes / 2**30)
