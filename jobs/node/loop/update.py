"""The optimizer of a loop that measures: it changes every tensor in place, and can be taken back.

An element's bits are taken as an integer, to which the update adds one; truth values are negated. So the state at a
save's call is the state now with as many updates taken back as there were since, without a copy of it.
"""

from __future__ import annotations

from ckpt.state import ties
from ckpt.state.layout import State


def update(state: State, times: int = 1) -> None:
    """Change every tensor of a state in place; `times` below 0 takes updates back."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tied = ties.tied(state)
    for name, tensor in state.items():
        if name in tied or not tensor.numel():
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if real.dtype is torch.bool:
            real.bitwise_xor_(torch.tensor(times % 2 == 1))
            continue
        bits = real.view(integers[real.itemsize])
        bits.add_(_wrapped(times, real.itemsize))


def _wrapped(number: int, size_bytes: int) -> int:
    """A number as a signed integer of that size has it."""
    bits = 8 * size_bytes
    half = 1 << (bits - 1)
    return (number + half) % (2 * half) - half
