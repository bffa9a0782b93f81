"""How a state is partitioned over ranks: which rank holds which rows of which tensor. Pure, without torch.

- `dim0`: every tensor is split along its first dimension into equal shards, one per rank, as FSDP does;
- `tensors`: whole tensors are assigned to ranks, balanced by bytes, as in pipeline stages;
- `replicated`: every rank holds everything, as with DDP; for a save, whole tensors are assigned to ranks as in
  `tensors`, so that each is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace
from itertools import pairwise
from typing import Literal

from ckpt.state.layout import Layout, TensorLayout

Sharding = Literal["dim0", "tensors", "replicated"]
"""The ways to partition a state, as above."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of a tensor, a row being an index of its first dimension; a tensor without one is one row."""

    whole: TensorLayout
    start: int
    stop: int

    @property
    def layout(self) -> TensorLayout:
        """The shard's rows as a tensor."""
        if not self.whole.shape:
            return self.whole
        whole = self.whole  # not `replace`, which is slow: a plan may need a million shards
        return TensorLayout(whole.name, (self.stop - self.start, *whole.shape[1:]), whole.dtype, whole.same_as)

    @property
    def is_whole(self) -> bool:
        """Whether the shard is the whole tensor."""
        return self.start == 0 and self.stop == rows_of(self.whole)


@dataclass(frozen=True, slots=True)
class Fragment:
    """The wanted rows of a tensor that lie within one stored shard."""

    saved: Shard
    wanted: Shard

    @property
    def rows(self) -> slice:
        """The wanted rows, counted from the stored shard's first."""
        return slice(self.wanted.start - self.saved.start, self.wanted.stop - self.saved.start)

    @property
    def is_all(self) -> bool:
        """Whether the whole stored shard is wanted."""
        return self.saved == self.wanted


@dataclass(frozen=True)
class Partition:
    """How a state is partitioned over ranks, or over a contiguous range of them treated as the whole.

    Attributes:
        tensors: the whole state's tensors.
        ranks: the number of all ranks.
        first, count: the range of ranks. On a node-local target the ranks of each node save a checkpoint of their own,
            in which a tensor consists of the rows that this node's ranks hold.
    """

    tensors: Layout
    sharding: Sharding
    ranks: int
    first: int
    count: int

    @classmethod
    def of(cls, tensors: Layout, sharding: Sharding, ranks: int) -> Partition:
        """Partition the whole state over all ranks."""
        return cls(tensors, sharding, ranks, 0, ranks)

    @classmethod
    def single(cls, tensors: Layout) -> Partition:
        """The partition of one process, which is one rank that holds everything."""
        return cls.of(tensors, "replicated", 1)

    def subset(self, first: int, count: int) -> Partition:
        """The partition over `count` ranks, starting at `first`."""
        if self.sharding == "replicated":  # every range of ranks has everything
            return Partition.of(self.tensors, self.sharding, count)
        return replace(self, first=self.first + first, count=count)

    @cached_property
    def layout(self) -> Layout:
        """The tensors that the ranks of the range hold together."""
        if self.sharding != "dim0":
            assigned = [number for bin_ in self._bins[self.first : self.first + self.count] for number in bin_]
            return tuple(self.tensors[number] for number in sorted(assigned))
        layouts = []
        for tensor in self.tensors:
            start, stop = self._rows(tensor, self.first)[0], self._rows(tensor, self.first + self.count - 1)[1]
            if stop > start or self.first <= _only_holder(tensor) < self.first + self.count:
                layouts.append(Shard(tensor, start, stop).layout)
        return tuple(layouts)

    def rows_per_rank(self, tensor: TensorLayout) -> int:
        """Rows in each full shard of a tensor: every boundary between ranks is a multiple of it.

        `tensor` is one of `layout`. Never 0; all rows of a tensor that isn't split.
        """
        if self.sharding != "dim0" or _only_holder(tensor) == 0:
            return max(1, rows_of(tensor))
        return self._rows_per_rank[tensor.name]

    def owned(self, rank: int) -> tuple[Shard, ...]:
        """The shards that a rank saves, in the state's order; ranks count from 0 within the range."""
        number = self.first + rank
        if self.sharding != "dim0":
            assigned = [self.tensors[index] for index in self._bins[number]]
            return tuple(Shard(tensor, 0, rows_of(tensor)) for tensor in assigned)
        wholes = {tensor.name: tensor for tensor in self.layout}
        shards = []
        for tensor in self.tensors:
            start, stop = self._rows(tensor, number)
            if stop > start or _only_holder(tensor) == number:
                base = self._rows(tensor, self.first)[0]
                shards.append(Shard(wholes[tensor.name], start - base, stop - base))
        return tuple(shards)

    def held(self, rank: int) -> tuple[Shard, ...]:
        """The shards that a rank has in memory and loads: all if the state is replicated, else those it saves."""
        if self.sharding == "replicated":
            return tuple(Shard(tensor, 0, rows_of(tensor)) for tensor in self.layout)
        return self.owned(rank)

    def is_single_read(self, wanted: Mapping[str, Shard | None] | None, readers: int) -> bool:
        """Whether one process reads whole tensors of what one process wrote."""
        return self.count == readers == 1 and all(shard is None or shard.is_whole for shard in (wanted or {}).values())

    def shards(self, wanted: Mapping[str, Shard | None] | None) -> list[Shard]:
        """Turn names with their rows, or None for the whole tensor, into shards; all tensors for None.

        Raises:
            KeyError: if the partition has no tensor of a name.
        """
        whole = {tensor.name: Shard(tensor, 0, rows_of(tensor)) for tensor in self.layout}
        return [shard or whole[name] for name, shard in (whole if wanted is None else wanted).items()]

    def fragments(self, shards: Iterable[Shard]) -> dict[int, list[Fragment]]:
        """Find the wanted shards in what these ranks saved: fragments by rank, in the order of their rows.

        Of tied tensors only the owner is looked up.

        Raises:
            KeyError: if no rank saved a tensor of that name.
        """
        fragments: dict[int, list[Fragment]] = {}
        wanted = [shard for shard in shards if shard.whole.same_as is None]
        if self.sharding != "dim0":
            rank_of = {shard.whole.name: rank for rank in range(self.count) for shard in self.owned(rank)}
            for shard in wanted:
                saved = Shard(shard.whole, 0, rows_of(shard.whole))
                fragments.setdefault(rank_of[shard.whole.name], []).append(Fragment(saved, shard))
        else:
            for shard in wanted:
                step, rows = self.rows_per_rank(shard.whole), rows_of(shard.whole)
                for rank in range(shard.start // step, max(shard.start // step + 1, -(-shard.stop // step))):
                    saved = Shard(shard.whole, rank * step, min((rank + 1) * step, rows))
                    part = Shard(shard.whole, max(shard.start, saved.start), min(shard.stop, saved.stop))
                    fragments.setdefault(rank, []).append(Fragment(saved, part))
        return dict(sorted(fragments.items()))

    def unique_shards(self) -> Iterator[tuple[Layout, int]]:
        """Yield each distinct layout that a rank saves, with the number of ranks that save it.

        A state partitioned over thousands of ranks has only a few distinct ones.
        """
        if self.sharding != "dim0":
            for rank in range(self.count):
                yield tensors_of(self.owned(rank)), 1
            return
        changes = {self.first, self.first + self.count}
        for tensor in self.tensors:
            full = rows_of(tensor) // self._rows_per_rank[tensor.name]
            changes |= {_only_holder(tensor), _only_holder(tensor) + 1, full, full + 1}
        inside = sorted(rank for rank in changes if self.first <= rank <= self.first + self.count)
        for begin, end in pairwise(inside):
            yield tensors_of(self.owned(begin - self.first)), end - begin

    @cached_property
    def _rows_per_rank(self) -> dict[str, int]:
        return {tensor.name: max(1, -(-rows_of(tensor) // self.ranks)) for tensor in self.tensors}

    def _rows(self, tensor: TensorLayout, number: int) -> tuple[int, int]:
        """First and last row of a rank, both counted over all ranks and the whole tensor; equal if it has none."""
        rows = rows_of(tensor)
        step = self._rows_per_rank[tensor.name] if _only_holder(tensor) else max(1, rows)
        return min(number * step, rows), min((number + 1) * step, rows)

    @cached_property
    def _bins(self) -> list[list[int]]:
        """The indices of each rank's tensors: the largest first, each to the emptiest bin, tied ones together."""
        bins: list[list[int]] = [[] for _ in range(self.ranks)]
        sizes = [(0, rank) for rank in range(self.ranks)]
        heapify(sizes)
        rank_of: dict[str, int] = {}
        owners = [number for number, tensor in enumerate(self.tensors) if tensor.same_as is None]
        for number in sorted(owners, key=lambda number: -self.tensors[number].size_bytes):
            size_bytes, rank = sizes[0]
            heapreplace(sizes, (size_bytes + self.tensors[number].size_bytes, rank))
            rank_of[self.tensors[number].name] = rank
        for number, tensor in enumerate(self.tensors):
            bins[rank_of[tensor.owner]].append(number)
        return bins


@dataclass(frozen=True)
class RankShards:
    """One rank's shards in a partition."""

    partition: Partition
    rank: int

    @classmethod
    def single(cls, tensors: Layout) -> RankShards:
        """Everything, in the partition of one process."""
        return cls(Partition.single(tensors), 0)

    @cached_property
    def owned(self) -> tuple[Shard, ...]:
        """The shards that it saves."""
        return self.partition.owned(self.rank)

    @cached_property
    def held(self) -> tuple[Shard, ...]:
        """The shards that it has in memory and loads."""
        return self.partition.held(self.rank)

    @cached_property
    def wanted(self) -> dict[str, Shard]:
        """The shards that it loads, by the names of their tensors."""
        return {shard.whole.name: shard for shard in self.held}


def rows_of(tensor: TensorLayout) -> int:
    """The size of the first dimension; 1 for a scalar."""
    return tensor.shape[0] if tensor.shape else 1


def _only_holder(tensor: TensorLayout) -> int:
    """The rank that holds all of a tensor that can't be split, which is the first; -1 for one that can."""
    return 0 if not tensor.shape or tensor.shape[0] == 0 else -1


def tensors_of(shards: Iterable[Shard]) -> Layout:
    """The shards' rows as tensors."""
    return tuple(shard.layout for shard in shards)
