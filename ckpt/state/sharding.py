"""Who holds what of a state that many ranks share: pure, without torch.

- `dim0`: every tensor is cut along its first dimension into as many equal pieces as there are ranks, as FSDP does;
- `tensors`: whole tensors are dealt to the ranks, balanced by bytes, as pipeline stages have them;
- `replicated`: every rank holds everything, as DDP has it; what is saved is dealt as above, so it is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace
from itertools import pairwise

from ckpt.state.layout import Layout, TensorLayout
from ckpt.workload.spec import Sharding


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows of a tensor, a row being an index of its first dimension; a tensor without one is one row."""

    whole: TensorLayout
    start: int
    stop: int

    @property
    def layout(self) -> TensorLayout:
        """The slice as a tensor of its own."""
        if not self.whole.shape:
            return self.whole
        whole = self.whole  # not `replace`, which is slow: a plan may ask for a million slices
        return TensorLayout(whole.name, (self.stop - self.start, *whole.shape[1:]), whole.dtype, whole.same_as)

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.start == 0 and self.stop == rows_of(self.whole)


Share = tuple[Slice, ...]
"""What one rank holds, in the state's order."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that are wanted of a tensor, among those that one rank saved of it."""

    saved: Slice
    wanted: Slice

    @property
    def rows(self) -> slice:
        """The wanted rows, counted in what the rank saved."""
        return slice(self.wanted.start - self.saved.start, self.wanted.stop - self.saved.start)

    @property
    def is_all(self) -> bool:
        """Whether all that the rank saved of the tensor is wanted."""
        return self.saved == self.wanted


@dataclass(frozen=True)
class Division:
    """How a state is divided among ranks; or among some of them that follow each other, as if there were no others.

    Attributes:
        tensors: the whole state's.
        ranks: how many there are in all.
        first, count: those that are looked at. On a node-local target each node's ranks save what they hold as a
            checkpoint of its own, and a tensor is as large there as the rows that the node has of it.
    """

    tensors: Layout
    sharding: Sharding
    ranks: int
    first: int
    count: int

    @classmethod
    def of(cls, tensors: Layout, sharding: Sharding, ranks: int) -> Division:
        """The whole state among all ranks."""
        return cls(tensors, sharding, ranks, 0, ranks)

    def window(self, first: int, count: int) -> Division:
        """The part of `count` ranks from `first` on."""
        if self.sharding == "replicated":  # each window has everything
            return Division.of(self.tensors, self.sharding, count)
        return replace(self, first=self.first + first, count=count)

    @cached_property
    def layout(self) -> Layout:
        """The tensors that the ranks looked at hold together."""
        if self.sharding != "dim0":
            dealt = [number for hand in self._hands[self.first : self.first + self.count] for number in hand]
            return tuple(self.tensors[number] for number in sorted(dealt))
        found = []
        for tensor in self.tensors:
            start, stop = self._rows(tensor, self.first)[0], self._rows(tensor, self.first + self.count - 1)[1]
            if stop > start or self.first <= _only_holder(tensor) < self.first + self.count:
                found.append(Slice(tensor, start, stop).layout)
        return tuple(found)

    def step(self, tensor: TensorLayout) -> int:
        """Rows of a tensor after which another rank's begin: every boundary between ranks is a multiple of it.

        `tensor` is one of `layout`. Never 0; the whole tensor's rows where it isn't cut.
        """
        if self.sharding != "dim0" or _only_holder(tensor) == 0:
            return max(1, rows_of(tensor))
        return self._steps[tensor.name]

    def writes(self, rank: int) -> Share:
        """What a rank (from 0, of those looked at) has to save."""
        number = self.first + rank
        if self.sharding != "dim0":
            dealt = [self.tensors[each] for each in self._hands[number]]
            return tuple(Slice(tensor, 0, rows_of(tensor)) for tensor in dealt)
        wholes = {tensor.name: tensor for tensor in self.layout}
        found = []
        for tensor in self.tensors:
            start, stop = self._rows(tensor, number)
            if stop > start or _only_holder(tensor) == number:
                base = self._rows(tensor, self.first)[0]
                found.append(Slice(wholes[tensor.name], start - base, stop - base))
        return tuple(found)

    def holds(self, rank: int) -> Share:
        """What a rank has in memory, and loads: everything where the state is replicated, else what it saves."""
        if self.sharding == "replicated":
            return tuple(Slice(tensor, 0, rows_of(tensor)) for tensor in self.layout)
        return self.writes(rank)

    def pieces(self, share: Share) -> dict[int, list[Piece]]:
        """Where the rows of a share lie that these ranks saved: by rank, in order; tied tensors with their owner only.

        Raises:
            KeyError: if no rank saved a tensor of that name.
        """
        found: dict[int, list[Piece]] = {}
        own = [each for each in share if each.whole.same_as is None]
        if self.sharding != "dim0":
            dealt = {each.whole.name: rank for rank in range(self.count) for each in self.writes(rank)}
            for each in own:
                everything = Slice(each.whole, 0, rows_of(each.whole))
                found.setdefault(dealt[each.whole.name], []).append(Piece(everything, each))
        else:
            for each in own:
                step, rows = self.step(each.whole), rows_of(each.whole)
                for rank in range(each.start // step, max(each.start // step + 1, -(-each.stop // step))):
                    saved = Slice(each.whole, rank * step, min((rank + 1) * step, rows))
                    wanted = Slice(each.whole, max(each.start, saved.start), min(each.stop, saved.stop))
                    found.setdefault(rank, []).append(Piece(saved, wanted))
        return dict(sorted(found.items()))

    def alike(self) -> Iterator[tuple[Layout, int]]:
        """What the ranks save, as tensors of their own, and how many ranks save just that.

        A state among thousands of ranks has a few kinds of shares only.
        """
        if self.sharding != "dim0":
            for rank in range(self.count):
                yield tensors_of(self.writes(rank)), 1
            return
        changes = {self.first, self.first + self.count}
        for tensor in self.tensors:
            full = rows_of(tensor) // self._steps[tensor.name]
            changes |= {_only_holder(tensor), _only_holder(tensor) + 1, full, full + 1}
        inside = sorted(each for each in changes if self.first <= each <= self.first + self.count)
        for begin, end in pairwise(inside):
            yield tensors_of(self.writes(begin - self.first)), end - begin

    @cached_property
    def _steps(self) -> dict[str, int]:
        return {tensor.name: max(1, -(-rows_of(tensor) // self.ranks)) for tensor in self.tensors}

    def _rows(self, tensor: TensorLayout, number: int) -> tuple[int, int]:
        """The rows of a rank, counted among all ranks and in the whole tensor; equal where it has none."""
        rows = rows_of(tensor)
        step = self._steps[tensor.name] if _only_holder(tensor) else max(1, rows)
        return min(number * step, rows), min((number + 1) * step, rows)

    @cached_property
    def _hands(self) -> list[list[int]]:
        """The numbers of each rank's tensors: the largest first, each to who has least; tied ones go together."""
        hands: list[list[int]] = [[] for _ in range(self.ranks)]
        piles = [(0, rank) for rank in range(self.ranks)]
        heapify(piles)
        holder: dict[str, int] = {}
        own = [number for number, tensor in enumerate(self.tensors) if tensor.same_as is None]
        for number in sorted(own, key=lambda each: -self.tensors[each].size_bytes):
            size_bytes, rank = piles[0]
            heapreplace(piles, (size_bytes + self.tensors[number].size_bytes, rank))
            holder[self.tensors[number].name] = rank
        for number, tensor in enumerate(self.tensors):
            hands[holder[tensor.owner]].append(number)
        return hands


@dataclass(frozen=True)
class Part:
    """One rank's part in a division."""

    division: Division
    rank: int

    @cached_property
    def writes(self) -> Share:
        """What it saves."""
        return self.division.writes(self.rank)

    @cached_property
    def holds(self) -> Share:
        """What it has in memory, and loads."""
        return self.division.holds(self.rank)


def rows_of(tensor: TensorLayout) -> int:
    """The size of the first dimension; 1 where there is none."""
    return tensor.shape[0] if tensor.shape else 1


def _only_holder(tensor: TensorLayout) -> int:
    """The rank that has all of a tensor that can't be cut, which is the first; -1 for one that can."""
    return 0 if not tensor.shape or tensor.shape[0] == 0 else -1


def tensors_of(share: Share) -> Layout:
    """A share as tensors of their own."""
    return tuple(each.layout for each in share)
