"""Chunks of an array, and of one that several ranks write together.

Boundaries between ranks and between chunks are multiples of `Partition.rows_per_rank`: no chunk has two writers.
A single process is a partition of one rank, whose chunks are those that the strategy chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any

from ckpt.state.layout import TensorLayout
from ckpt.state.sharding import Partition, Shard, rows_of

MIB = 2**20

RANKS = "one array per parameter, each rank writing chunks of its own"
"""How the strategies with an array per parameter describe what several ranks write."""


def is_split(tensor: TensorLayout, partition: Partition) -> bool:
    """Return whether several ranks have rows of a tensor."""
    return partition.rows_per_rank(tensor) < rows_of(tensor)


def for_ranks(
    choose: Callable[[tuple[int, ...]], Sequence[int]], tensor: TensorLayout, partition: Partition
) -> list[int]:
    """Return the shape of a tensor's chunks: of a split tensor, the rows of a chunk divide those of every rank.

    Args:
        choose: returns the shape of the chunks for the shape of an array.
        tensor: one of the partition's layout.
        partition: which rank holds which rows.
    """
    if not is_split(tensor, partition):
        return list(choose(tensor.shape))
    rows = partition.rows_per_rank(tensor)
    first, *others = choose((rows, *tensor.shape[1:]))
    return [nearest_divisor(rows, first), *others]


@cache
def divisors(number: int) -> tuple[int, ...]:
    """Return all divisors, in ascending order."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return tuple(sorted({*small, *(number // divisor for divisor in small)}))


@cache
def nearest_divisor(number: int, wanted: int) -> int:
    """Return the divisor whose ratio to the wanted number is closest to 1; the smaller one of two."""
    return min(divisors(number), key=lambda divisor: max(divisor, wanted) / min(divisor, wanted))


def chunk_shape(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """Split along the first dimension that has to be split, so that a chunk is contiguous in the tensor's memory.

    A divisor of the dimension is preferred if it is at least half of the largest possible part: it needs no padding.
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
        whole_parts = [part for part in divisors(size) if most // 2 < part <= most]
        chunk[axis] = max(whole_parts, default=-(-size // -(-size // most)))
        break
    return chunk


def row_chunks(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """Split the first dimension into equal parts of at most that many bytes, or of one row if a row has more."""
    chunk = [max(1, size) for size in shape]
    if shape and 0 not in shape:
        parts = -(-math.prod(shape) * itemsize // most_bytes)
        chunk[0] = -(-shape[0] // min(parts, shape[0]))
    return chunk


def shard_shape(shape: tuple[int, ...], chunk: Sequence[int], itemsize: int, most_bytes: int) -> list[int]:
    """Count the chunks that fit into that many bytes, but at least one, along the dimension that is split."""
    shard = list(chunk)
    for axis, (size, part) in enumerate(zip(shape, chunk, strict=True)):
        if part < size:
            shard[axis] *= min(-(-size // part), max(1, most_bytes // (itemsize * math.prod(chunk))))
            break
    return shard


def chunk_count(shape: Collection[int], chunk: Collection[int]) -> int:
    """Return the number of chunks of an array."""
    return math.prod(-(-size // part) for size, part in zip(shape, chunk, strict=True))


def chunk_indices(shard: Shard, chunk: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Return the indices of the chunks that have rows of a shard, as texts: file names consist of them."""
    ranges = [range(-(-size // part)) for size, part in zip(shard.whole.shape, chunk, strict=True)]
    if ranges:
        ranges[0] = range(shard.start // chunk[0], -(-shard.stop // chunk[0]))
    return product(*(map(str, indices) for indices in ranges))


def open_mode(shard: Shard) -> dict[str, Any]:
    """Return TensorStore's arguments to open an array: the rank with the first rows creates it, no rank waits."""
    return {"create": True} if shard.start == 0 else {"open": True, "assume_metadata": True}


def rows_in(store: Any, shard: Shard | None) -> Any:
    """Return the rows of a shard in a stored array; the whole array for None."""
    return store if shard is None or shard.is_whole else store[shard.start : shard.stop]
