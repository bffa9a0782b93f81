"""The scale of a job: how many processes on how many nodes, and which of them save and load what; pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition, Sharding


@dataclass(frozen=True, slots=True)
class Scale:
    """Nodes × tasks per node that save, and how many ranks load.

    A job has as many processes per node as either needs. Processes are numbered node by node.
    """

    nodes: int
    tasks_per_node: int
    load_ranks: int

    @property
    def ranks(self) -> int:
        """How many save."""
        return self.nodes * self.tasks_per_node

    @property
    def loaders_per_node(self) -> int:
        """How many load on a node; on the last ones there may be fewer."""
        return -(-self.load_ranks // self.nodes)

    @property
    def processes_per_node(self) -> int:
        """How many processes a node has."""
        return max(self.tasks_per_node, self.loaders_per_node)

    @property
    def processes(self) -> int:
        """How many processes the job has."""
        return self.nodes * self.processes_per_node

    @property
    def reshards(self) -> bool:
        """Whether another number of ranks loads than saved."""
        return self.load_ranks != self.ranks

    def saver(self, process: int) -> int | None:
        """The rank, among those that save, of a process; None if it doesn't."""
        node, local = divmod(process, self.processes_per_node)
        return node * self.tasks_per_node + local if local < self.tasks_per_node else None

    def loader(self, process: int) -> int | None:
        """The rank, among those that load, of a process; None if it doesn't."""
        node, local = divmod(process, self.processes_per_node)
        rank = node * self.loaders_per_node + local
        return rank if local < self.loaders_per_node and rank < self.load_ranks else None

    def savers(self) -> list[int]:
        """The processes that save."""
        return [process for process in range(self.processes) if self.saver(process) is not None]

    def loaders(self) -> list[int]:
        """The processes that load."""
        return [process for process in range(self.processes) if self.loader(process) is not None]

    def directories(self, tensors: Layout, sharding: Sharding, *, node_local: bool) -> list[Partition]:
        """The checkpoints that the ranks write together: one, or one per node."""
        whole = Partition.of(tensors, sharding, self.ranks)
        if not node_local:
            return [whole]
        return [whole.subset(node * self.tasks_per_node, self.tasks_per_node) for node in range(self.nodes)]

    def __str__(self) -> str:
        """As job ids have it."""
        return f"{self.nodes}x{self.tasks_per_node}"
