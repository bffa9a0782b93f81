"""A base class for strategies whose library supports one process only: every rank writes a checkpoint by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.process_group.group import ProcessGroup
from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategy import Footprint, Strategy, Wanted, sum_over_ranks

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class SingleProcessStrategy(Strategy):
    """Writes a directory per rank, or a file if `rank_file` names one; a single process needs no such directory.

    Any number of ranks can read a replicated state; every other state needs as many as wrote it.
    """

    rank_file: ClassVar[str] = ""
    """The name of the one file that a process writes, such as `state.pth`; empty for a directory."""

    @abstractmethod
    def rank_footprint(self, layout: Layout) -> Footprint:
        """Compute the most files and bytes that one process writes."""

    @abstractmethod
    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write tensors into an existing, empty directory, or into the file `path`; returns the files."""

    @abstractmethod
    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Read what `write_rank` wrote: the tensors of these names, or everything.

        Raises:
            CheckpointError: as `read` does.
        """

    @final
    def footprint(self, partition: Partition) -> Footprint:
        """Add up the footprints of all ranks."""
        return sum_over_ranks(partition, self.rank_footprint)

    @final
    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write this rank's own directory or file."""
        return self.write_rank(state, self.rank_path(directory, shards))

    @final
    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read what the rank wrote that owned these shards; of a replicated state, what several ranks wrote."""
        if stored is None:
            return self.read_rank(self._path(directory, 0, 1), wanted)
        state: State = {}
        for path in self._saved(directory, wanted, stored, group):
            state |= self.read_rank(path, None)
        return state if wanted is None else {name: state[name] for name in wanted}

    @final
    def fill(self, directory: Path, into: State, wanted: Wanted, stored: Partition | None, group: ProcessGroup) -> None:
        """Fill tensors from what the rank wrote that owned these shards; of a replicated state, from several ranks'."""
        if not self.capabilities.loads_in_place:
            super().fill(directory, into, wanted, stored, group)
        elif stored is None:
            self.fill_rank(self._path(directory, 0, 1), into)
        else:
            for path, names in self._saved(directory, wanted, stored, group).items():
                self.fill_rank(path, {name: into[name] for name in names})

    def fill_rank(self, path: Path, targets: State) -> None:
        """Fill tensors from what `write_rank` wrote; called if `capabilities.loads_in_place`.

        Raises:
            CheckpointError: as `fill` does; if the strategy has no such method.
        """
        raise CheckpointError(
            f"can't fill {len(targets)} tensors from {path}: strategy {self.label} declares that it loads in place, "
            "and has no fill_rank"
        )

    def _saved(
        self, directory: Path, wanted: Wanted | None, stored: Partition, group: ProcessGroup
    ) -> dict[Path, list[str]]:
        """Return where the ranks wrote that owned these shards, and the names of the tensors without tied ones.

        Raises:
            CheckpointError: if that takes resharding.
        """
        fragments = stored.fragments(stored.shards(wanted))
        are_whole = all(fragment.is_all for held in fragments.values() for fragment in held)
        if (stored.sharding != "replicated" and (group.size != stored.count or len(fragments) > 1)) or not are_whole:
            self.refuse_resharding(stored, group)
        return {
            self._path(directory, rank, stored.count): [fragment.wanted.whole.name for fragment in held]
            for rank, held in fragments.items()
        }

    @final
    def rank_path(self, directory: Path, shards: RankShards) -> Path:
        """Make this rank's directory, unless it writes a file; returns where it writes."""
        path = self._path(directory, shards.rank, shards.partition.count)
        if not self.rank_file:
            path.mkdir(exist_ok=True)
        return path

    def _path(self, directory: Path, rank: int, count: int) -> Path:
        if self.rank_file:
            return directory / filenames.of_rank(self.rank_file, rank, count)
        return directory if count == 1 else directory / filenames.of_rank("rank", rank, count)
