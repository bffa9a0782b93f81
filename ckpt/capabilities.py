"""What is known of a strategy without running it: capabilities, a description, the size of what it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ckpt.state.layout import Layout
from ckpt.state.sharding import Partition


class Syncs(Enum):
    """Which files' data `write` brings to stable storage; `ckpt.disk.durable` syncs the rest."""

    ALL_FILES = "files"
    SOME_FILES = "some files"
    NOTHING = "no"


class Checksum(Enum):
    """Whether checksums of the data are stored, and whether `read` compares them."""

    NONE = "none"
    WRITTEN = "written, not verified"
    VERIFIED = "verified"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What other code needs to know of a strategy; the contract tests compare it with the behaviour.

    Attributes:
        can_reshard: a checkpoint can be read by another number of ranks than wrote it, unless the state is replicated,
            which every strategy can.
        partial_load: `read` reads some tensors without reading the others.
        loads_in_place: `fill` reads into tensors that exist.
        checksum: of the data.
        syncs: what is on stable storage when `write` returns; directories never need to be.
        atomic_files: a file gets its name only once it is complete. `ckpt.disk.commit` commits the checkpoint.
        reports_close_errors: `write` fails if a file can't be closed, which is when quotas and network filesystems
            report lost writes. For a library that ignores such errors, `ckpt.save` reads everything back.
        needs_process_group: `write` and `read` use torch.distributed's default process group.
    """

    can_reshard: bool = False
    partial_load: bool = True
    loads_in_place: bool = False
    checksum: Checksum = Checksum.NONE
    syncs: Syncs = Syncs.NOTHING
    atomic_files: bool = False
    reports_close_errors: bool = True
    needs_process_group: bool = False

    @property
    def syncs_files(self) -> bool:
        """Whether all files' data is on stable storage when `write` returns."""
        return self.syncs is Syncs.ALL_FILES


@dataclass(frozen=True, slots=True)
class Description:
    """What a reader wants to know before choosing a strategy, in short phrases; no code depends on it."""

    files: str
    """Per checkpoint; in parentheses, how many a large state has on some filesystems."""
    format: str
    chunks: str
    compression: str
    concurrency: str
    dtype_on_disk: str
    order_of_writes: str
    other_readers: str
    """The programs that open its files; `none` if there are none."""
    best_for: str
    ranks: str = "a directory for each rank"
    """What a checkpoint that several ranks write together consists of."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The most files and bytes that a checkpoint takes, computed before anything is written."""

    file_count: int
    size_bytes: int


def sum_over_ranks(partition: Partition, footprint_of: Callable[[Layout], Footprint]) -> Footprint:
    """Add up what all ranks of a partition write, given what one process writes."""
    counted = [(footprint_of(layout), count) for layout, count in partition.unique_shards()]
    return Footprint(
        sum(footprint.file_count * count for footprint, count in counted),
        sum(footprint.size_bytes * count for footprint, count in counted),
    )
