"""The processes of a job: how they find each other, whom each waits for, and what it saves and loads.

Who they are stands in the environment that srun, or submitit's local executor, gave each of them. They meet where the
first one's address lies: in a file of the study's directory, which all nodes see (`jobs.node.rendezvous`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.process_group.store_group import StoreGroup
from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition, RankShards, Sharding
from jobs.errors import StudyError
from jobs.node import received
from jobs.node.rendezvous import meet
from jobs.paths import StudyPaths
from jobs.plan.plan import Job
from jobs.plan.scale import Scale

_FAREWELL_S = 5
"""How long the first process stays for the others, which talk through it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of its job this is."""

    number: int
    """From 0, node by node."""
    count: int
    node: int
    launch: str
    """Different for each start of a job, the same for its processes."""


def place_of(job: Job, environment: Mapping[str, str]) -> Place:
    """This process's place in its job, as srun or submitit's local executor says.

    Raises:
        StudyError: if it wasn't started as often as the job wants, or not node by node.
    """
    scale = job.scale
    if scale.processes == 1:
        return Place(0, 1, 0, "")
    if "SUBMITIT_LOCAL_GLOBALID" in environment:
        names = "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_NODEID"
        launch = "local-" + environment["SUBMITIT_LOCAL_JOB_ID"]
    else:
        names = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID"
        launch = "-".join(environment.get(f"SLURM_{key}", "0") for key in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    number, count, node = (int(environment.get(name, default)) for name, default in zip(names, "010", strict=True))
    if count != scale.processes:
        per_node = scale.processes_per_node
        raise StudyError(
            f"{job.id} takes {scale.processes} processes, {per_node} on each of {scale.nodes} node(s), and was started "
            f"as {count}: start it by `srun --nodes={scale.nodes} --ntasks-per-node={per_node} python -m jobs job …`, "
            f"or let `python -m jobs run` do that"
        )
    if node != number // scale.processes_per_node:
        raise StudyError(
            f"{job.id}: process {number} runs on node {node}, and processes are to be numbered node by node: "
            "start it with srun's --distribution=block"
        )
    return Place(number, count, node, launch)


@dataclass(frozen=True, slots=True)
class Crew:
    """The processes of a job, as one of them sees them.

    Attributes:
        world: all of them.
        node: those on this node.
        here: those that see the same checkpoint: all, or this node's where the target is node-local.
        savers: all that save; None in a process that doesn't. The parts of the whole state go by their ranks.
        saving: those of them that write one checkpoint together, this process among them; None likewise.
        loading: those that load one together; None in a process that doesn't load.
    """

    scale: Scale
    place: Place
    world: ProcessGroup
    node: ProcessGroup
    here: ProcessGroup
    savers: ProcessGroup | None
    saving: ProcessGroup | None
    loading: ProcessGroup | None

    @classmethod
    def alone(cls) -> Crew:
        """One process that does everything."""
        self = SingleProcess()
        return cls(Scale(1, 1, 1), Place(0, 1, 0, ""), self, self, self, self, self, self)

    @property
    def leads(self) -> bool:
        """Whether this process makes, publishes and removes directories for those that see them."""
        return self.here.rank == 0

    @property
    def first_is_lost(self) -> str:
        """What this process knows of the first one's end; empty if nothing."""
        return self.world.first_is_lost if isinstance(self.world, StoreGroup) else ""

    @contextmanager
    def led(self, made: AbstractContextManager[Path]) -> Iterator[Path]:
        """A directory that the leader makes, and removes in the end."""
        if self.leads:
            with made as path:
                self.here.broadcast(str(path))
                yield path
        else:
            yield Path(self.here.broadcast(None, received.text))

    def leave(self) -> None:
        """Go; the first process last."""
        if isinstance(self.world, StoreGroup):
            self.world.gather_survivors("farewell", None, _FAREWELL_S)
            self.world.leave()


@dataclass(frozen=True, slots=True)
class Parts:
    """What one process holds, saves and loads.

    Attributes:
        own: its part of the whole state, which it has in memory; None in a process that only loads.
        saves: the same, in the checkpoint that it writes with others.
        saved: how that checkpoint is divided.
        loads: what it loads; None in a process that only saves.
        source: what it loads, as a part of the whole state.
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

    @property
    def alone(self) -> bool:
        """Whether a checkpoint is saved and loaded by one process, as if there were no others."""
        return self.saved.count == 1 and self.loads is not None and self.loads.partition == self.saved


def parts_of(crew: Crew, tensors: Layout, sharding: Sharding, read_shift: int, *, node_local: bool) -> Parts:
    """What a process has to do with a state; it loads what was written `read_shift` nodes further on."""
    scale = crew.scale
    whole = Partition.of(tensors, sharding, scale.ranks)
    saver, loader = scale.saver(crew.place.number), scale.loader(crew.place.number)
    own = None if saver is None else RankShards(whole, saver)
    if node_local:  # nothing is resharded or shifted there
        first = crew.place.node * scale.tasks_per_node
        saved = whole.subset(first, scale.tasks_per_node)
        part = None if saver is None else RankShards(saved, saver - first)
        return Parts(own, part, saved, part, own)
    reading = Partition.of(tensors, sharding, scale.load_ranks)
    shifted = None if loader is None else (loader + read_shift * scale.loaders_per_node) % scale.load_ranks
    source = None if shifted is None else RankShards(reading, shifted)
    return Parts(own, own, whole, source, source)


def assemble(job: Job, paths: StudyPaths, place: Place, *, node_local: bool, timeout_s: float) -> Crew:
    """Find the job's other processes.

    Raises:
        LostRankError: if they don't come in time.
        StudyError: if others could read, or left, the file where they meet.
    """
    scale = job.scale
    if place.count == 1:
        return Crew.alone()
    meeting_point = paths.slurm / f"{job.id}.{place.launch}.meeting"
    me = [(number, "not here yet") for number in range(place.count)]
    with meet(meeting_point, place.number, place.count, one_host=job.nodes == 1, timeout_s=timeout_s) as store:
        coming = StoreGroup(store, me, place.number, timeout_s, "hosts")
        hosts = coming.read(coming.all_gather(socket.gethostname()), received.text)
    world = StoreGroup(store, list(enumerate(hosts)), place.number, timeout_s, "world")
    per_node = scale.processes_per_node
    node = world.subgroup(range(place.node * per_node, (place.node + 1) * per_node), f"node{place.node}")
    savers = world.subgroup(scale.savers(), "savers") if scale.saver(place.number) is not None else None
    loaders = world.subgroup(scale.loaders(), "loaders") if scale.loader(place.number) is not None else None
    saving, loading = savers, loaders
    if node_local:  # as many load as save
        saving = loading = node
    elif not scale.reshards:
        loading = savers  # one group: gloo need not be started twice
    return Crew(scale, place, world, node, node if node_local else world, savers, saving, loading)
