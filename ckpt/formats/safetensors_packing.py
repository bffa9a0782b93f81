"""Tensors as the safetensors library takes them: contiguous, on the CPU, and no two sharing memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckpt.formats.safetensors_metadata import TensorInfo, stored_name

if TYPE_CHECKING:
    from ckpt.state.layout import State


def pack(state: State, infos: Iterable[TensorInfo]) -> State:
    """Return these tensors of a state by key; views that overlap another tensor are copied."""
    import torch

    tensors: State = {}
    taken: dict[int, list[tuple[int, int]]] = {}  # by storage: address ranges in ascending order, none overlapping
    for info in infos:
        tensor = state[info.layout.name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        if info.is_pair:
            tensor = torch.view_as_real(tensor)
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        ranges = taken.setdefault(tensor.untyped_storage().data_ptr(), [])
        index = bisect_left(ranges, (start, end))
        neighbors = ranges[max(0, index - 1) : index + 1]
        if any(start < other_end and other_start < end for other_start, other_end in neighbors):
            tensor = tensor.clone()
        elif tensor.nbytes:
            ranges.insert(index, (start, end))
        tensors[stored_name(info.layout.name)] = tensor
    return tensors
