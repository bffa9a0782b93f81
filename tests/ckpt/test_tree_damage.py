"""Damaged texts of a nested state: each is one error, and reads no memory but the tensor's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt.errors import CheckpointError
from ckpt.tree import nested


@pytest.mark.parametrize(
    "rest",
    [{"parts": []}, {"parts": [{"part": 0}]}, {"parts": [{"part": 1}, [{"part": 1}]]}, {"part": 1}, {"deque": 1},
     {"deque": ["x", []]}, {"defaultdict": ["eval", {"dict": []}]}, {"attributes": [1, {"dict": []}]},
     {"numpy": ["O", ""]}, {"numpy": ["<f8", ""]}, {"range": ["x"]}, {"Decimal": "x"}, {"datetime": [1]},
     {"Fraction": "1e999999999"},
     {"timedelta": [10**30, 0, 0]}, {"tensor": {"name": "w", "strides": [10**9, 1]}}, {"tensor": {"strides": []}},
     {"tensor": {"name": "w", "size": [3, 3], "strides": [9, 9]}}, {"tensor": {"name": "w", "strides": [-1, 1]}},
     {"tensor": {"name": "w", "size": [2], "strides": [1.5]}}, {"tensor": {"name": "i", "requires_grad": True}}],
    ids=str,
)  # fmt: skip
def test_damaged_texts(rest: Any) -> None:
    """A text that `flatten` did not make is an error, and reads no memory but the tensor's."""
    with pytest.raises(CheckpointError):
        nested.restore(rest, {"w": torch.ones(4, 2)[:2], "i": torch.arange(2)})


@pytest.mark.parametrize("rest", [{}, {"a": 1, "b": 2}, {"dict": [1]}, {"deque": []}], ids=str)
def test_damaged_texts_are_not_counted(rest: Any) -> None:
    """Nor does the count of plain values, or a load by name, end with a traceback."""
    with pytest.raises(CheckpointError, match="damaged"):
        nested.plain_values(rest)
    for content in ({}, {"name": [1]}):
        with pytest.raises(CheckpointError, match="damaged"):
            nested.restore_named([rest, {"tensor": content}], {})
