"""The chunks that T5X takes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.strategies.tensorstore_t5x_real import TensorstoreT5xReal

MIB = 2**20


@pytest.mark.parametrize(
    ("shape", "bytes_per_element", "chunk"),
    [
        ((32000, 3200), 2, [8000, 3200]),
        ((8640, 3200), 2, [8640, 3200]),
        ((3200, 8640), 4, [3200, 4320]),
        ((4096, 14336), 2, [4096, 7168]),  # rows are cut where the inner dimension is the larger one
        ((67108859,), 2, [1]),  # a prime has no smaller divisor but 1
        ((), 4, []),
        ((0, 3), 4, [1, 3]),
    ],
)
def test_chunk_shapes(shape: tuple[int, ...], bytes_per_element: int, chunk: list[int]) -> None:
    """The largest dimension goes to its next smaller divisor until 64 MiB are enough, in the state's own dtype."""
    assert chunk == TensorstoreT5xReal().chunk_shape(shape, bytes_per_element)


@given(st.lists(st.integers(1, 10**5), max_size=3), st.sampled_from([1, 2, 4, 8, 16]))
def test_chunks_divide_the_array(shape: list[int], bytes_per_element: int) -> None:
    """No chunk is padded, and none has more than 64 MiB."""
    chunk = TensorstoreT5xReal().chunk_shape(tuple(shape), bytes_per_element)
    assert [size % part for size, part in zip(shape, chunk, strict=True)] == [0] * len(shape)
    assert math.prod(chunk) * bytes_per_element <= 64 * MIB
