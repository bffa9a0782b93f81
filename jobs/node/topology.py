"""Who is who in a job: which of its processes this is, and what it saves and loads; pure but for the environment.

srun, or submitit's local executor, sets every process's rank in its environment.
"""

from __future__ import annotations

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


def process_info(job: Job, environment: Mapping[str, str]) -> ProcessInfo:
    """Read this process's rank from what srun, or submitit's local executor, set in the environment.

    Raises:
        StudyError: if the job wasn't started with as many processes as it needs, or they aren't numbered node by node.
    """
    scale = job.scale
    if scale.processes == 1:
        return ProcessInfo(0, 1, 0, "")
    if "SUBMITIT_LOCAL_GLOBALID" in environment:
        names = "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_NODEID"
        launch = "local-" + environment["SUBMITIT_LOCAL_JOB_ID"]
    else:
        names = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID"
        launch = "-".join(environment.get(f"SLURM_{key}", "0") for key in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    rank, size, node = (int(environment.get(name, default)) for name, default in zip(names, "010", strict=True))
    if size != scale.processes:
        per_node = scale.processes_per_node
        raise StudyError(
            f"{job.id} takes {scale.processes} processes, {per_node} on each of {scale.nodes} node(s), and was started "
            f"as {size}: start it by `srun --nodes={scale.nodes} --ntasks-per-node={per_node} python -m jobs job …`, "
            f"or let `python -m jobs run` do that"
        )
    if node != rank // scale.processes_per_node:
        raise StudyError(
            f"{job.id}: process {rank} runs on node {node}, and processes must be numbered node by node: "
            "start it with srun's --distribution=block"
        )
    return ProcessInfo(rank, size, node, launch)


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
