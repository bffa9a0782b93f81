"""What a strategy is — one way to save a state to a directory and load it back — and where to find them all.

A strategy is one module in `ckpt/strategies/` with one class, named after the module (`torch_save` -> `TorchSave`).
Its options are the class's fields. It contains no clock, no fsync of its own unless its library does one, and
no cleaning: `jobs.node.trial` and `ckpt.disk.commit` do that for all alike.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from ckpt import strategies
from ckpt.errors import CheckpointError, ContradictionError, MissingLibraryError, UnknownStrategyError
from ckpt.process_group.group import ProcessGroup
from ckpt.state import checksums, ties
from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition, RankShards
from ckpt.threads import Beside, over

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


OPTIONAL = "peers"
"""The extra whose libraries a study can do without."""

CheckTensor = Callable[[str, "torch.Tensor"], None]
"""Takes a tensor that was loaded, with its name, and raises a CheckpointError if it is not what was saved."""

_CHECKING_THREADS = 4

_forked_from: list[int] = []
"""The process that had TensorStore when this one was forked from it; empty if there is none."""


def _note_fork() -> None:
    if "tensorstore" in sys.modules:
        _forked_from.append(os.getppid())


os.register_at_fork(after_in_child=_note_fork)

SELFTEST = "_selftest"
"""The strategy of known cost that `python -m jobs selftest` runs; not one of those that there are."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a user wants to know before choosing a strategy. One line each; tests hold them to the truth."""

    files: str
    format: str
    chunks: str
    compression: str
    concurrency: str
    dtype_on_disk: str
    order_of_writes: str
    synced: Literal["files", "some files", "no"]
    """Whether `save` itself brings the files' data to stable storage; what it leaves, `durable.flush` does."""
    atomic: Literal["each file", "no"]
    """Whether a file gets its name only when it is whole. `ckpt.disk.commit` commits the checkpoint as a whole."""
    checksum: Literal["none", "written, not verified", "verified"]
    """Whether a flipped bit in the data can be found, and whether `load` looks."""
    partial_load: Literal["by tensor", "no"]
    """Whether `load` reads some tensors without reading the others."""
    other_readers: str
    """Who else opens what it wrote; `none` if nobody."""
    best_for: str
    ranks: str = "a directory for each rank"
    """What a checkpoint that several ranks write together consists of."""
    resharding: Literal["any number of ranks", "as many ranks as saved"] = "as many ranks as saved"
    """On how many ranks a checkpoint of a state that isn't replicated can be loaded."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one checkpoint will take, at most, computed before anything is written."""

    file_count: int
    size_bytes: int


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to save a state to a directory and load it back; its fields are its options."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    requires: ClassVar[tuple[str, ...]] = ("torch",)
    """Modules that it imports; `prepare` imports them, so that no import falls inside a clock."""

    extra: ClassVar[str] = "run"
    """The extra of this package that brings them; a study skips a strategy of `peers` where they aren't installed."""

    reports_close: ClassVar[bool] = True
    """Whether `save` fails where a file can't be closed, which is when quotas and network filesystems report that they
    could not write it. What a library keeps to itself, `ckpt.save` finds by reading."""

    uses_process_group: ClassVar[bool] = False
    """Whether `save_together` and `load_together` need torch.distributed's default process group to be these ranks."""

    @property
    def syncs_files(self) -> bool:
        """Whether `save` returns with every file's data on stable storage (directories are always left to us)."""
        return self.facts.synced == "files"

    @property
    def contradiction(self) -> str:
        """Why these options make no sense together; empty if they do."""
        return ""

    @classmethod
    def name(cls) -> str:
        """The strategy's name: its module's."""
        return cls.__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """The name, and the options that aren't at their default: `tensorstore_basic+compressor=none`."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return "+".join([self.name(), *changed])

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values."""
        return asdict(self)

    def prepare(self) -> None:
        """Import what `save` and `load` need.

        Raises:
            MissingLibraryError: if a library is missing.
        """
        for module in self.requires:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise MissingLibraryError(
                    f"strategy {self.name()} needs {module}, which can't be imported here ({error}): "
                    f"install it (pip install '.[{self.extra}]'), or leave the strategy out of the study",
                    optional=self.extra == OPTIONAL,
                ) from error
        if _forked_from and {"tensorstore", "orbax.checkpoint"} & set(self.requires):
            raise CheckpointError(
                f"strategy {self.name()} needs TensorStore, which was used before this process was forked, and would "
                'end it: start processes by multiprocessing\'s "spawn", or take a strategy without it, such as '
                "safetensors_direct"
            )

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What it does, with these options."""

    @abstractmethod
    def footprint(self, layout: Layout) -> Footprint:
        """The most files and bytes that a checkpoint of this state takes."""

    def contents(self, directory: Path) -> Layout | None:  # noqa: ARG002  # for those that can
        """The tensors of a checkpoint that another program wrote, without their data; None if only a load tells."""
        return None

    @abstractmethod
    def save(self, state: State, directory: Path) -> list[Path]:
        """Write the state into an existing, empty directory.

        Returns:
            The files that were written: what is published must be what was written, whoever else was there.
        """

    @abstractmethod
    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read the state, or the tensors of these names, every byte into writable memory that the caller owns.

        Raises:
            CheckpointError: if the checkpoint is incomplete or damaged, or lacks a name; and if names are given
                where the format has only the whole.
        """

    def save_checked(self, state: State, directory: Path) -> tuple[list[Path], dict[str, str]]:
        """Save; return the files that were written, and the checksum of each tensor, computed beside."""
        with Beside() as beside:
            sums = {name: beside.submit(checksums.of, tensor) for name, tensor in state.items()}
            files = self.save(state, directory)
            return files, {name: checksum.result() for name, checksum in sums.items()}

    def load_checked(self, directory: Path, names: Collection[str] | None, check: CheckTensor) -> State:
        """Load, and call `check` with each tensor, from several threads; what it raises ends the load."""
        state = self.load(directory, names)
        owners = state.keys() - ties.tied(state).keys() if names is None else state.keys()
        over(sorted(owners), lambda name: check(name, state[name]), _CHECKING_THREADS)
        return state

    def footprint_together(self, partition: Partition) -> Footprint:
        """The most files and bytes that a checkpoint takes which the ranks of a partition write together."""
        each = [(self.footprint(layout), count) for layout, count in partition.unique_shards()]
        return Footprint(
            sum(footprint.file_count * count for footprint, count in each),
            sum(footprint.size_bytes * count for footprint, count in each),
        )

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:  # noqa: ARG002  # for those that need the others
        """Write one rank's part of a checkpoint into a directory that all ranks write to; every rank calls it.

        Here: each into a directory of its own. Strategies that can do better do.

        Args:
            state: what `part.owned` says, each slice a tensor under its whole's name.
            directory: exists, the same for all ranks, and was empty before the first came.
            part: what this rank has to write.
            ranks: those that write, as this one sees them.

        Returns:
            The files that this rank wrote: nobody else can bring them to stable storage.
        """
        own = directory / directory_of(part.rank, part.partition.count)
        own.mkdir()
        return self.save(state, own)

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # for those that need the others
        """Read one rank's part of what ranks saved together; every rank that loads calls it.

        Args:
            directory: the checkpoint.
            part: what this rank wants: `part.held`, each slice a tensor under its whole's name, in that order.
            saved: how the checkpoint was divided.
            ranks: those that load, as this one sees them.

        Raises:
            CheckpointError: if the checkpoint is incomplete or damaged; and if it was saved by another number of
                ranks than `part` has, and this strategy can't cope with that.
        """
        if saved.sharding == "replicated":  # every whole tensor is somewhere
            found: State = {}
            for rank in range(saved.count):
                found |= self.load(directory / directory_of(rank, saved.count))
            return {each.whole.name: found[each.whole.name] for each in part.held}
        self.refuse_resharding(part, saved)
        return self.load(directory / directory_of(part.rank, saved.count))

    def refuse_resharding(self, part: RankShards, saved: Partition) -> None:
        """For strategies that load as many ranks as saved.

        Raises:
            CheckpointError: if a part is wanted that no rank saved.
        """
        if part.partition != saved:
            raise CheckpointError(
                f"strategy {self.label} can load what {saved.count} ranks saved on {saved.count} ranks only, not on "
                f"{part.partition.count}: leave `load_ranks` out, or choose a strategy that can reshard"
            )


def directory_of(rank: int, size: int) -> str:
    """The name of what one of so many ranks has for itself."""
    return f"rank-{rank:05d}-of-{size:05d}"


def names() -> list[str]:
    """Every strategy there is."""
    return sorted(m.name for m in pkgutil.iter_modules(strategies.__path__) if not m.name.startswith("_"))


def strategy_class(name: str) -> type[Strategy]:
    """The class of the strategy of that name.

    Raises:
        UnknownStrategyError: with the names that there are.
    """
    if name not in {*names(), SELFTEST}:
        raise UnknownStrategyError(f"there is no strategy {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{strategies.__name__}.{name}")
    found: type[Strategy] = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    return found


def create(name: str, options: dict[str, Any] | None = None) -> Strategy:
    """The strategy of that name, with these options.

    Raises:
        UnknownStrategyError: if there is no such strategy, option, or value of an option.
        ContradictionError: if the options make no sense together.
    """
    cls = strategy_class(name)
    try:
        created: Strategy = TypeAdapter(cls).validate_python(options or {})
    except ValidationError as error:
        known = ", ".join(f"{field.name} ({field.type})" for field in fields(cls)) or "none"
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg'].lower()}" for e in error.errors()
        )
        raise UnknownStrategyError(f"strategy {name}: {problems}. Its options: {known}") from None
    if created.contradiction:
        raise ContradictionError(f"strategy {created.label}: {created.contradiction}")
    return created
