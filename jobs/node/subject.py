"""What one process of a job saves and loads: its shards of the state, by a strategy, with other processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.process_group.group import ProcessGroup
from ckpt.state import memory
from ckpt.state.compare import poison
from ckpt.state.layout import State, state_bytes
from ckpt.state.sharding import tensors_of
from jobs.node.groups import ProcessGroups
from jobs.node.topology import Assignment

if TYPE_CHECKING:
    from ckpt.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Subject:
    """What is saved and loaded, and with which processes, as one process sees it.

    Attributes:
        state: what this process has in memory; empty in one that only loads.
        expected: what it must load; the state itself where it loads what it saved.
    """

    strategy: Strategy
    groups: ProcessGroups
    assignment: Assignment
    state: State
    expected: State

    def with_groups(self, groups: ProcessGroups) -> Subject:
        """The same, saved and loaded with other groups."""
        return replace(self, groups=groups)

    @property
    def owned(self) -> State:
        """What this process saves of the state that it has in memory."""
        assert self.assignment.saves is not None  # the caller saves
        return {shard.whole.name: self.state[shard.whole.name] for shard in self.assignment.saves.owned}

    def save(self, staging: Path) -> list[Path]:
        """Write this process's shards; returns the files that it wrote."""
        assert self.assignment.saves is not None and self.groups.writers is not None  # noqa: PT018  # the caller saves
        return self.strategy.write(self.owned, staging, self.assignment.saves, self.groups.writers)

    def load(self, final: Path) -> State:
        """Read what this process has to load."""
        assert self.assignment.loads is not None and self.groups.loaders is not None  # noqa: PT018  # the caller loads
        wanted, saved = self.assignment.loads.wanted, self.assignment.saved
        return self.strategy.read(final, wanted, saved, self.groups.loaders)

    def targets(self) -> State:
        """Memory for what this process has to load, without tied tensors, that holds something else."""
        assert self.assignment.loads is not None  # the caller loads
        layouts = [shard.layout for shard in self.assignment.loads.held if shard.whole.same_as is None]
        targets = {layout.name: memory.empty(layout) for layout in layouts}
        poison(targets)
        return targets

    def fill(self, final: Path, targets: State) -> State:
        """Read what this process has to load into memory that exists; returns it with the names of tied tensors."""
        assert self.assignment.loads is not None and self.groups.loaders is not None  # noqa: PT018  # the caller loads
        held, saved = self.assignment.loads.held, self.assignment.saved
        self.strategy.fill(final, targets, self.assignment.loads.wanted, saved, self.groups.loaders)
        return {shard.whole.name: targets[shard.whole.owner] for shard in held}

    def prepare_groups(self, group: ProcessGroup | None) -> None:
        """Give torch.distributed the processes that save or load, if the strategy uses it."""
        if self.strategy.capabilities.needs_process_group and group is not None and group.size > 1:
            group.init_torch_distributed()

    def wait_for_all(self, group: ProcessGroup | None) -> None:
        """Wait for all processes, outside the clock, so that all start at once."""
        self.prepare_groups(group)
        self.groups.world.barrier()

    @property
    def writes_alone(self) -> bool:
        """Whether no other process writes into the checkpoint's directory."""
        return self.groups.writers is not None and self.groups.writers.size == 1

    @property
    def saved_bytes(self) -> int:
        """The logical size of what this process saves."""
        return state_bytes(tensors_of(self.assignment.saves.owned)) if self.assignment.saves else 0

    @property
    def loaded_bytes(self) -> int:
        """The logical size of what this process loads."""
        return state_bytes(tensors_of(self.assignment.loads.held)) if self.assignment.loads else 0
