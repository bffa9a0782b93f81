"""Who is who in a job: which of its processes this is, and what it saves and loads; pure but for the environment.

Whatever starts the processes (srun, mpiexec, flux, submitit's local executor) sets every process's rank in its
environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition, RankShards, Sharding
from jobs.errors import StudyError
from jobs.plan.plan import Job
from jobs.plan.scale import Scale


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """Which process of its job this is."""

    rank: int
    """From 0, node by node."""
    size: int
    """How many processes the job has."""
    node: int
    launch: str
    """Different for every start of a job, the same for its processes."""


@dataclass(frozen=True, slots=True)
class _Launcher:
    """The variables in which a launcher gives every process its rank."""

    rank: str
    size: str
    start: tuple[str, ...]
    """Together different for every start; empty where the launcher has nothing of that kind."""
    node: str = ""
    """The number of the node."""
    local_rank: str = ""
    """The number of the process on its node, where there is no `node`."""


_LAUNCHERS = {
    "submitit": _Launcher(
        rank="SUBMITIT_LOCAL_GLOBALID",
        size="SUBMITIT_LOCAL_NTASKS",
        node="SUBMITIT_LOCAL_NODEID",
        start=("SUBMITIT_LOCAL_JOB_ID",),
    ),
    "openmpi": _Launcher(
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        start=("PMIX_NAMESPACE",),
    ),
    "flux": _Launcher(
        rank="FLUX_TASK_RANK", size="FLUX_JOB_SIZE", local_rank="FLUX_TASK_LOCAL_ID", start=("FLUX_JOB_ID",)
    ),
    "pals": _Launcher(rank="PALS_RANKID", size="PMI_SIZE", node="PALS_NODEID", start=("PALS_APID",)),
    "hydra": _Launcher(rank="PMI_RANK", size="PMI_SIZE", local_rank="MPI_LOCALRANKID", start=()),
    "slurm": _Launcher(
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        node="SLURM_NODEID",
        start=("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    ),
}
"""By name, in the order in which they are asked: an `mpiexec` may have been started by another launcher's process.

Hydra is the `mpiexec` of MPICH and Intel MPI, PALS that of HPE Cray systems with PBS.
"""


def process_info(job: Job, environment: Mapping[str, str]) -> ProcessInfo:
    """Read this process's rank from what its launcher set in the environment.

    Raises:
        StudyError: if the job wasn't started with as many processes as it needs, or they aren't numbered node by node,
            or don't know their nodes.
    """
    scale = job.scale
    if scale.processes == 1:
        return ProcessInfo(0, 1, 0, "")
    per_node = scale.processes_per_node
    name, launcher = _launcher_of(environment)
    rank, size = (_number(environment, variable) for variable in (launcher.rank, launcher.size)) if name else (0, 1)
    if size != scale.processes:
        raise StudyError(
            f"{job.id} takes {scale.processes} processes, {per_node} on each of {scale.nodes} node(s), and was started "
            f"as {size}: start it by `srun --nodes={scale.nodes} --ntasks-per-node={per_node} python -m jobs job …`, "
            f"by `mpiexec -n {scale.processes} …` or `flux run`, or let `python -m jobs run` do that"
        )
    expected, variable = (rank // per_node, launcher.node) if launcher.node else (rank % per_node, launcher.local_rank)
    if _number(environment, variable) != expected:
        raise StudyError(
            f"{job.id}: process {rank} has {variable}={environment[variable]}, and {expected} is expected where "
            f"{per_node} processes on each node are numbered node by node: start it with srun's --distribution=block, "
            "with mpiexec's -ppn, or, with Open MPI, --map-by ppr:N:node"
        )
    start = "-".join(environment.get(variable, "0") for variable in launcher.start)
    return ProcessInfo(rank, size, rank // per_node, re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}-{start}"))


def _launcher_of(environment: Mapping[str, str]) -> tuple[str, _Launcher]:
    """Return the launcher that started this process, and its name; an empty name if none did.

    Raises:
        StudyError: if one did that doesn't tell processes where they are.
    """
    nodeless = ""
    for name, launcher in _LAUNCHERS.items():
        where = launcher.node or launcher.local_rank
        if environment.get(launcher.rank) and environment.get(launcher.size):
            if environment.get(where):
                return name, launcher
            nodeless = nodeless or f"{launcher.rank} and {launcher.size} are set here, but not {where}"
    if nodeless:
        raise StudyError(
            f"{nodeless}, so that it is not known which processes share a node: start the job by srun, flux run, or "
            "the mpiexec of MPICH, Intel MPI, Open MPI or HPE Cray PALS"
        )
    return "", _LAUNCHERS["slurm"]


def _number(environment: Mapping[str, str], variable: str) -> int:
    try:
        return int(environment[variable])
    except ValueError:
        raise StudyError(
            f"{variable}={environment[variable]!r} is no number, and a process's rank is read from it"
        ) from None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one process holds, saves and loads.

    Attributes:
        own: its shards of the whole state, which it has in memory; None in a process that only loads.
        saves: its shards in the checkpoint that it writes with others; None in a process that only loads.
        saved: how that checkpoint is partitioned.
        loads: the shards that it loads; None in a process that only saves.
        source: the shards that it loads, in the partition of the whole state.
    """

    own: RankShards | None
    saves: RankShards | None
    saved: Partition
    loads: RankShards | None
    source: RankShards | None

    @property
    def loads_its_own(self) -> bool:
        """Whether it loads what it has in memory."""
        return self.own == self.source


def assign(
    scale: Scale, process: ProcessInfo, tensors: Layout, sharding: Sharding, read_shift: int, *, node_local: bool
) -> Assignment:
    """What a process does with a state; it loads what was written `read_shift` nodes further on."""
    whole = Partition.of(tensors, sharding, scale.ranks)
    saver, loader = scale.saver(process.rank), scale.loader(process.rank)
    own = None if saver is None else RankShards(whole, saver)
    if node_local:  # nothing is resharded or shifted there
        first = process.node * scale.tasks_per_node
        saved = whole.subset(first, scale.tasks_per_node)
        shards = None if saver is None else RankShards(saved, saver - first)
        return Assignment(own, shards, saved, shards, own)
    reading = Partition.of(tensors, sharding, scale.load_ranks)
    shifted = None if loader is None else (loader + read_shift * scale.loaders_per_node) % scale.load_ranks
    source = None if shifted is None else RankShards(reading, shifted)
    return Assignment(own, own, whole, source, source)
