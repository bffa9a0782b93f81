"""The nodes of a job's ranks, as far as storage goes: the ranks of a node see the same directory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nodes:
    """Which ranks are on which node. The first rank of a node leads it; rank 0 leads node 0.

    Attributes:
        leaders: by rank, the rank that leads its node.
        rank: this process's.
    """

    leaders: tuple[int, ...]
    rank: int

    @classmethod
    def seen(cls, directories: Sequence[Hashable], rank: int) -> Nodes:
        """Tell nodes apart.

        Args:
            directories: by rank, what identifies the directory that it sees.
            rank: this process's.
        """
        return cls(tuple(map(directories.index, directories)), rank)

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(set(self.leaders))

    @property
    def number(self) -> int:
        """This process's node; nodes are numbered in the order of their leaders."""
        return sorted(set(self.leaders)).index(self.leader)

    @property
    def leader(self) -> int:
        """The rank that leads this process's node."""
        return self.leaders[self.rank]

    @property
    def leads(self) -> bool:
        """Whether this process leads its node."""
        return self.leader == self.rank

    def is_here(self, rank: int) -> bool:
        """Whether a rank is on this process's node."""
        return self.leaders[rank] == self.leader
