"""The process groups of a job: which of its processes wait for which others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.process_group.store_group import StoreGroup
from jobs.node import received
from jobs.node.rendezvous import meet
from jobs.node.topology import ProcessInfo
from jobs.paths import StudyPaths
from jobs.plan.plan import Job
from jobs.plan.scale import Scale

_FAREWELL_S = 5
"""How long the first process stays for the others, which communicate through it."""


@dataclass(frozen=True, slots=True)
class ProcessGroups:
    """The process groups of a job, as one of its processes sees them.

    Attributes:
        world: all processes.
        node: those on this node.
        checkpoint: those that see the same checkpoint: all, or this node's where the target is node-local.
        savers: all that save, in the order of the whole state's shards; None in a process that doesn't save.
        writers: the savers that write one checkpoint with this process; None in a process that doesn't save.
        loaders: those that load one checkpoint with this process; None in a process that doesn't load.
    """

    scale: Scale
    process: ProcessInfo
    world: ProcessGroup
    node: ProcessGroup
    checkpoint: ProcessGroup
    savers: ProcessGroup | None
    writers: ProcessGroup | None
    loaders: ProcessGroup | None

    @classmethod
    def alone(cls) -> ProcessGroups:
        """One process that does everything."""
        group = SingleProcess()
        return cls(Scale(1, 1, 1), ProcessInfo(0, 1, 0, ""), group, group, group, group, group, group)

    @property
    def is_leader(self) -> bool:
        """Whether this process makes, publishes and removes directories for those that see them."""
        return self.checkpoint.rank == 0

    @property
    def first_is_lost(self) -> str:
        """What this process knows of the loss of the first one; empty if nothing."""
        return self.world.first_is_lost if isinstance(self.world, StoreGroup) else ""

    @contextmanager
    def shared(self, directory: AbstractContextManager[Path]) -> Iterator[Path]:
        """A directory that the leader makes, and removes in the end."""
        if self.is_leader:
            with directory as path:
                self.checkpoint.broadcast(str(path))
                yield path
        else:
            yield Path(self.checkpoint.broadcast(None, received.text))

    def leave(self) -> None:
        """Leave the job's groups; the first process leaves last."""
        if isinstance(self.world, StoreGroup):
            self.world.gather_survivors("farewell", None, _FAREWELL_S)
            self.world.leave()


def meeting_point(job: Job, paths: StudyPaths, process: ProcessInfo, purpose: str) -> Path:
    """The file by which the job's processes meet; it exists while they do."""
    return paths.slurm / f"{job.id}.{process.launch}{purpose and '.' + purpose}.meeting"


def connect(
    job: Job, paths: StudyPaths, process: ProcessInfo, *, node_local: bool, timeout_s: float, purpose: str = ""
) -> ProcessGroups:
    """Find the job's other processes.

    Args:
        job: of the caller, as the next two.
        paths: where the study's results go.
        process: which of the job's this is.
        node_local: whether every node has a target of its own.
        timeout_s: how long to wait for others, now and later.
        purpose: of these groups; those of one purpose can be used while those of another wait.

    Raises:
        LostRankError: if they don't come in time.
        StudyError: if others could read, or left, the file where they meet.
    """
    scale, rank = job.scale, process.rank
    if process.size == 1:
        return ProcessGroups.alone()
    where = meeting_point(job, paths, process, purpose)
    members = [(number, "not here yet") for number in range(process.size)]
    with meet(where, rank, process.size, one_host=job.nodes == 1, timeout_s=timeout_s) as store:
        arriving = StoreGroup(store, members, rank, timeout_s, "hosts")
        hosts = arriving.read(arriving.all_gather(socket.gethostname()), received.text)
    world = StoreGroup(store, list(enumerate(hosts)), rank, timeout_s, "world")
    per_node = scale.processes_per_node
    node = world.subgroup(range(process.node * per_node, (process.node + 1) * per_node), f"node{process.node}")
    savers = world.subgroup(scale.savers(), "savers") if scale.saver(rank) is not None else None
    loaders = world.subgroup(scale.loaders(), "loaders") if scale.loader(rank) is not None else None
    if node_local:  # as many load as save
        return ProcessGroups(scale, process, world, node, node, savers, node, node)
    if not scale.reshards:
        loaders = savers  # one group: gloo need not be started twice
    return ProcessGroups(scale, process, world, node, world, savers, savers, loaders)
