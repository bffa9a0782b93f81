"""What one process of a job saves and loads: its shards of the state, by a strategy, with other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.process_group.group import ProcessGroup
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

    def save(self, staging: Path) -> list[Path] | None:
        """Write this process's shards; returns the files that it wrote, or None if it wrote all there are."""
        if self.assignment.alone:
            self.strategy.save(self.state, staging)
            return None
        assert self.assignment.saves is not None and self.groups.writers is not None  # noqa: PT018  # the caller saves
        own = {shard.whole.name: self.state[shard.whole.name] for shard in self.assignment.saves.owned}
        return self.strategy.save_together(own, staging, self.assignment.saves, self.groups.writers)

    def load(self, final: Path) -> State:
        """Read what this process has to load."""
        if self.assignment.alone:
            return self.strategy.load(final)
        assert self.assignment.loads is not None and self.groups.loaders is not None  # noqa: PT018  # the caller loads
        return self.strategy.load_together(final, self.assignment.loads, self.assignment.saved, self.groups.loaders)

    def wait_for_all(self, group: ProcessGroup | None) -> None:
        """Wait for all processes, outside the clock, so that all start at once."""
        if self.strategy.uses_process_group and group is not None and group.size > 1:
            group.init_torch_distributed()
        self.groups.world.barrier()

    @property
    def saved_bytes(self) -> int:
        """The logical size of what this process saves."""
        return state_bytes(tensors_of(self.assignment.saves.owned)) if self.assignment.saves else 0

    @property
    def loaded_bytes(self) -> int:
        """The logical size of what this process loads."""
        return state_bytes(tensors_of(self.assignment.loads.held)) if self.assignment.loads else 0
