"""An array that several ranks write together: chunks that agree with who holds which rows, and the places they have.

Boundaries between ranks and between chunks are multiples of `Partition.rows_per_rank`: no chunk has two writers.
One process is a partition with one rank, whose chunks are those that the strategy wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

from ckpt.state.layout import TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Shard, rows_of

if TYPE_CHECKING:
    from ckpt.state.layout import State

RANKS = "one array per parameter, each rank writing chunks of its own"
"""What is said of the strategies that do so."""


def alone(state: State) -> RankShards:
    """The part of one process that saves a state by itself."""
    return RankShards(Partition.of(layout_of_state(state), "replicated", 1), 0)


def is_cut(tensor: TensorLayout, partition: Partition) -> bool:
    """Whether several ranks have rows of it."""
    return partition.rows_per_rank(tensor) < rows_of(tensor)


def for_ranks(
    choose: Callable[[tuple[int, ...]], Sequence[int]], tensor: TensorLayout, partition: Partition
) -> list[int]:
    """The shape of the chunks: what is chosen for the tensor; where it is cut, for a step of it, and a divisor of that.

    Args:
        choose: gives the shape of the chunks of an array of some shape.
        tensor: one of the partition's layout.
        partition: who holds which rows.
    """
    if not is_cut(tensor, partition):
        return list(choose(tensor.shape))
    step = partition.rows_per_rank(tensor)
    first, *others = choose((step, *tensor.shape[1:]))
    return [nearest_divisor(step, first), *others]


@cache
def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor that differs least from what is wanted, as a ratio; the smaller one of two."""
    small = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    divisors = {*small, *(number // part for part in small)}
    return min(sorted(divisors), key=lambda part: max(part, wanted) / min(part, wanted))


def chunk_shape(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """Split along the first dimension that has to be split, so that a chunk is one piece of the tensor's memory.

    Where a divisor of the dimension serves nearly as well as the largest part, it is taken: no chunk is padded then.
    """
    chunk = [max(1, size) for size in shape]
    for axis, size in enumerate(chunk):
        row_bytes = itemsize * math.prod(chunk[axis + 1 :])
        most = most_bytes // row_bytes
        if most >= size:
            break
        if most < 1:
            chunk[axis] = 1
            continue
        divisors = (part for part in range(most, most // 2, -1) if size % part == 0)
        chunk[axis] = next(divisors, -(-size // -(-size // most)))
        break
    return chunk


def shard_shape(shape: tuple[int, ...], chunk: Sequence[int], itemsize: int, most_bytes: int) -> list[int]:
    """As many chunks as have that many bytes, but one at least, along the dimension that is split."""
    shard = list(chunk)
    for axis, (size, part) in enumerate(zip(shape, chunk, strict=True)):
        if part < size:
            shard[axis] *= min(-(-size // part), max(1, most_bytes // (itemsize * math.prod(chunk))))
            break
    return shard


def count(shape: Collection[int], part: Collection[int]) -> int:
    """How many parts of that shape cover a shape."""
    return math.prod(-(-size // each) for size, each in zip(shape, part, strict=True))


def places(each: Shard, chunk: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Where in the array's grid the chunks lie that hold these rows, as their names have it."""
    numbers = [range(-(-size // part)) for size, part in zip(each.whole.shape, chunk, strict=True)]
    if numbers:
        numbers[0] = range(each.start // chunk[0], -(-each.stop // chunk[0]))
    return product(*(map(str, among) for among in numbers))


def opening(each: Shard) -> dict[str, Any]:
    """How TensorStore opens an array to write these rows: who has the first makes it, nobody waits for that."""
    return {"create": True} if each.start == 0 else {"open": True, "assume_metadata": True}


def rows_in(store: Any, each: Shard | None) -> Any:
    """These rows of an array, or all."""
    return store if each is None or each.is_whole else store[each.start : each.stop]
