"""The contract of a strategy: one way to write a state to a directory and read it back.

A strategy is a frozen dataclass whose fields are its options. It neither measures nor cleans up, and syncs files only
where its `Capabilities` declare so: `jobs.node.trial` and `ckpt.disk.commit` do that for all strategies alike.
`ckpt.registry` finds strategies by name.
"""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from ckpt.background.async_saver import AsyncSaver
from ckpt.capabilities import Capabilities, Checksum, Description, Footprint, Syncs, sum_over_ranks
from ckpt.errors import CheckpointError, MissingLibraryError
from ckpt.process_group.group import ProcessGroup, SingleProcess
from ckpt.state import checksums, ties
from ckpt.state.layout import Layout, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.threads import Beside, over

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

__all__ = [
    "OPTIONAL", "Capabilities", "CheckTensor", "Checksum", "Description", "Footprint", "Strategy", "Syncs", "Wanted",
    "sum_over_ranks",
]  # fmt: skip

OPTIONAL = "peers"
"""The extra whose libraries a study can do without."""

Wanted = Mapping[str, "Shard | None"]
"""The tensors to read, by name: the wanted rows, or None for the whole tensor."""

CheckTensor = Callable[[str, "torch.Tensor"], None]
"""Takes a loaded tensor and its name, and raises a CheckpointError if it is not what was saved."""

_CHECKING_THREADS = 4

_forked_from: list[int] = []
"""The parent process if it had imported TensorStore before this process was forked; else empty."""


def _note_fork() -> None:
    if "tensorstore" in sys.modules:
        _forked_from.append(os.getppid())


os.register_at_fork(after_in_child=_note_fork)


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to write a state to a directory and read it back; its fields are its options."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: ClassVar[str]
    """The name in studies, tables and checkpoints: its module's in `ckpt.strategies`, else its entry point's."""

    requires: ClassVar[tuple[str, ...]] = ("torch",)
    """The modules that `prepare` imports, so that no import falls inside a measurement."""

    extra: ClassVar[str] = "run"
    """The extra of this package that installs them; a study skips a strategy of `peers` if they aren't installed."""

    async_ways: ClassVar[tuple[str, ...]] = ()
    """Its library's own asynchronous saves, as a training loop calls them: `library`, or `library-thread`, ..."""

    @property
    def contradiction(self) -> str:
        """Why these options make no sense together; empty if they do."""
        return ""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What other code can rely on, with these options."""

    @abstractmethod
    def describe(self) -> Description:
        """Describe the strategy, with these options, for people."""

    @abstractmethod
    def footprint(self, partition: Partition) -> Footprint:
        """Compute the most files and bytes that the ranks of a partition write together; without torch.

        Raises:
            CheckpointError: if the strategy, with these options, can't write that partition.
        """

    @abstractmethod
    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:
        """Write one rank's shards of a checkpoint; every rank of the group calls it.

        Args:
            state: the shards that the rank owns, in their order, by the tensors' names.
            directory: exists, is the same for all ranks, and was empty before the first of them called.
            shards: what the rank owns in the partition of the whole state. A single process is one rank.
            group: the ranks that write, as this one sees them.

        Returns:
            The files that this rank wrote, and no others.
        """

    @abstractmethod
    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read tensors, or rows of them, into writable memory that the caller owns; every rank of the group calls it.

        Args:
            directory: the checkpoint.
            wanted: what this rank reads; None for everything. Rows of a tensor can be wanted if `stored` is given.
            stored: the partition that was written; None if one process wrote it, and only the files describe it.
            group: the ranks that read, as this one sees them.

        Returns:
            The tensors by name, in the order of the checkpoint.

        Raises:
            CheckpointError: if the checkpoint is incomplete or damaged, or lacks a tensor; if only some tensors are
                wanted and the strategy has no partial load; if another number of ranks wrote it and the strategy can't
                reshard.
        """

    def fill(self, directory: Path, into: State, wanted: Wanted, stored: Partition | None, group: ProcessGroup) -> None:  # noqa: ARG002  # for strategies that can
        """Read tensors, or rows of them, into tensors that exist; every rank of the group calls it.

        Args:
            directory: the checkpoint.
            into: what to fill, by name: contiguous tensors on the CPU, of the shapes and dtypes that `read` would
                return, of which no two share memory. Of tied tensors, it has the owner only.
            wanted: the rows of every target, or None for the whole tensor; it may have tied tensors besides.
            stored: the partition that was written; None if one process wrote it, and only the files describe it.
            group: the ranks that read, as this one sees them.

        Raises:
            CheckpointError: as `read` does; if a target has another shape or dtype than the checkpoint, before any of
                them is changed; if the strategy can't: see `Capabilities.loads_in_place`.
        """
        raise CheckpointError(
            f"{directory}: strategy {self.label} can't load into tensors that exist. Load without `into`, and copy; "
            "or use another strategy: `python -m ckpt convert` turns one checkpoint into another"
        )

    def async_saver(self, way: str) -> AsyncSaver:
        """Prepare the library's own asynchronous save of that name, one of `async_ways`.

        Raises:
            CheckpointError: if there is none of that name, or not with these options or this version of the library.
        """
        known = f"it has {', '.join(self.async_ways)}" if self.async_ways else "its library has none"
        raise CheckpointError(f"strategy {self.name} has no asynchronous save {way!r} of its library: {known}")

    def contents(self, directory: Path) -> Layout | None:  # noqa: ARG002  # for strategies that can
        """List the tensors of a checkpoint without reading their data; None if that takes a load."""
        return None

    @final
    def save(self, state: State, directory: Path) -> list[Path]:
        """Write a whole state from a single process; returns the files."""
        return self.write(state, directory, RankShards.single(layout_of_state(state)), SingleProcess())

    @final
    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read what a single process wrote: the tensors of these names, or everything."""
        return self.read(directory, None if names is None else dict.fromkeys(names), None, SingleProcess())

    def save_checked(self, state: State, directory: Path) -> tuple[list[Path], dict[str, str]]:
        """Save from a single process; returns the files, and all tensors' checksums, computed in the meantime."""
        with Beside() as beside:
            sums = {name: beside.submit(checksums.of, tensor) for name, tensor in state.items()}
            files = self.save(state, directory)
            return files, {name: checksum.result() for name, checksum in sums.items()}

    def load_checked(self, directory: Path, names: Collection[str] | None, check: CheckTensor) -> State:
        """Load into a single process, and call `check` with every tensor, from several threads."""
        state = self.load(directory, names)
        owners = state.keys() - ties.tied(state).keys() if names is None else state.keys()
        over(sorted(owners), lambda name: check(name, state[name]), _CHECKING_THREADS)
        return state

    def fill_checked(self, directory: Path, targets: State, check: CheckTensor) -> None:
        """Fill tensors from what a single process wrote, and call `check` with every one, from several threads."""
        self.fill(directory, targets, dict.fromkeys(targets), None, SingleProcess())
        over(sorted(targets), lambda name: check(name, targets[name]), _CHECKING_THREADS)

    def prepare(self) -> None:
        """Import what `write` and `read` need; raises a MissingLibraryError if a library is missing."""
        for module in self.requires:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MissingLibraryError(
                    f"strategy {self.name} needs {module}, which can't be imported here ({error}): install it "
                    f"({self.installed_by}), or leave the strategy out of the study",
                    optional=self.extra == OPTIONAL,
                ) from error
        if _forked_from and {"tensorstore", "orbax.checkpoint"} & set(self.requires):
            raise CheckpointError(
                f"strategy {self.name} needs TensorStore, which was used before this process was forked, and would "
                'end it: start processes by multiprocessing\'s "spawn", or take a strategy without it, such as '
                "safetensors_tuned"
            )

    @property
    def installed_by(self) -> str:
        """How to install the libraries that it needs."""
        package = type(self).__module__.partition(".")[0]
        return f"pip install '.[{self.extra}]'" if package == "ckpt" else f"with the package that has {package}"

    @property
    def label(self) -> str:
        """The name, and the options that aren't at their default: `tensorstore_basic+compressor=none`."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return "+".join([self.name, *changed])

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values."""
        return asdict(self)

    def facts(self) -> dict[str, str]:
        """Description and capabilities as texts, as tables and timing logs have them."""
        capabilities, described = self.capabilities, asdict(self.describe())
        last = {key: described.pop(key) for key in ("other_readers", "best_for", "ranks")}
        return described | {
            "synced": capabilities.syncs.value,
            "atomic": "each file" if capabilities.atomic_files else "no",
            "checksum": capabilities.checksum.value,
            "partial_load": "by tensor" if capabilities.partial_load else "no",
            "in_place": "yes" if capabilities.loads_in_place else "no",
            **last,
            "resharding": "any number of ranks" if capabilities.can_reshard else "as many ranks as saved",
        }

    def refuse_resharding(self, stored: Partition, group: ProcessGroup) -> None:
        """Refuse to read a checkpoint with another number of ranks than wrote it.

        Raises:
            CheckpointError: if the numbers differ.
        """
        if group.size != stored.count:
            raise CheckpointError(
                f"strategy {self.label} can load what {stored.count} ranks saved on {stored.count} ranks only, not on "
                f"{group.size}: leave `load_ranks` out, or choose a strategy that can reshard"
            )
