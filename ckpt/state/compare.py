"""Checks of a loaded state: it equals the saved one bit for bit, and its memory belongs to this process."""

from __future__ import annotations

from pathlib import Path

import torch

from ckpt.state.layout import State


def first_difference(expected: State, actual: State) -> str | None:
    """Describe the first difference between two states in names, shapes, dtypes or bits; None if there is none.

    The order of the names doesn't count.
    """
    if expected.keys() != actual.keys():
        missing, surplus = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
        return f"names differ: missing {missing[:3]}, not expected {surplus[:3]}"
    for name, want in expected.items():
        have = actual[name]
        if (want.dtype, want.shape) != (have.dtype, have.shape):
            return f"{name}: expected {want.dtype} {list(want.shape)}, found {have.dtype} {list(have.shape)}"
        if want.numel() and not torch.equal(as_bytes(want), as_bytes(have)):
            wrong = int((as_bytes(want) != as_bytes(have)).sum())
            return f"{name}: {wrong} of {want.numel() * want.element_size()} bytes differ"
    return None


def poison(state: State) -> None:
    """Overwrite a loaded state, so that a later load can't pass the comparison with recycled memory."""
    for tensor in state.values():
        torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(0xA5)


def mapped_file(state: State) -> str:
    """Return a file that a tensor's memory is mapped from; an empty text if no tensor is mapped.

    A mapped state has not been read yet: its pages are read from the file at the first access.
    """
    mappings = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].startswith("/") and not parts[5].startswith(("/dev/zero", "/memfd:")):
            start, _, end = parts[0].partition("-")
            mappings.append((int(start, 16), int(end, 16), parts[5]))
    for tensor in state.values():
        address = tensor.untyped_storage().data_ptr()
        for first, last, path in mappings:
            if tensor.numel() and first <= address < last:
                return path
    return ""


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values, 1-D with stride 1: a view if the tensor is contiguous, a copy otherwise."""
    values = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return values.as_strided((values.numel(),), (1,))  # a single element counts as contiguous whatever its stride


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes, 1-D: a view if the tensor is contiguous, a copy otherwise."""
    return flat(tensor).view(torch.uint8)
