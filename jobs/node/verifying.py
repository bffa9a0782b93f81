"""What is wrong with a loaded state before a bit of it is compared: where it lies."""

from __future__ import annotations

from ckpt.state.compare import mapped_file
from ckpt.state.layout import State
from jobs.node.recorder import DIFFERS, NOT_OWNED


def not_its_own(state: State, loaded: State) -> str:
    """Why a loaded state is not in memory of its own; empty if it is.

    Args:
        state: what was saved, as it is in memory.
        loaded: what was read.
    """
    if _storages(state) & _storages(loaded):
        return f"{DIFFERS}: it is the saved one itself, and nothing was read"
    file = mapped_file(loaded)
    return f"{NOT_OWNED}: it is mapped from {file}, which is read when somebody looks" if file else ""


def _storages(state: State) -> set[int]:
    """The addresses of the memory that a state's tensors lie in."""
    return {tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}
