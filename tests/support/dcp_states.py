"""States for torch.distributed.checkpoint: every dtype, views, empty and tied tensors, plain values."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver


def dtypes() -> list[torch.dtype]:
    """All dtypes that DCP itself can save."""
    kinds = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted((dtype for dtype in kinds if _can_be_saved(dtype)), key=str)


def _can_be_saved(dtype: torch.dtype) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if torch.empty(0, dtype=dtype).is_quantized:  # it needs a scale
                return False
            torch._utils._element_size(dtype)  # type: ignore[no-untyped-call]
            torch.save(torch.zeros(16, dtype=torch.uint8).view(dtype), io.BytesIO())
        except (RuntimeError, KeyError, TypeError):
            return False
    return True


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of random bits, of 0 and 1 for booleans."""
    count = torch.Size(shape).numel()
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count * dtype.itemsize,), dtype=torch.uint8)
    return bits.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """What must be equal of two tensors: values can't be compared for every dtype, and NaNs never."""
    values = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    raw = bytes(values.reshape(-1).view(torch.uint8).tolist()) if values.numel() else b""
    return values.dtype, tuple(values.shape), raw


def every_kind() -> dict[str, Any]:
    """A nested state with a tensor of each kind, and plain values beside them."""
    torch.manual_seed(7)
    base = torch.randn(300, 200)
    tied = torch.randn(70, 300)
    return {
        "dtypes": {str(dtype).removeprefix("torch."): random(dtype, 6, 5) for dtype in dtypes()},
        "large": torch.randn(401, 97),
        "page": torch.randn(64, 1024),
        "views": {
            "row": base[3:250],
            "column": base[:, 5:190],
            "transposed": base.t(),
            "expanded": torch.randn(1, 300).expand(90, 300),
            "odd address": torch.arange(40_000, dtype=torch.uint8)[3:39_000],
            "conjugate": torch.randn(90, 120, dtype=torch.complex64).conj(),
            "negative": torch.randn(90, 120, dtype=torch.complex64).conj().imag,
            "channels last": torch.randn(2, 30, 20, 20).to(memory_format=torch.channels_last),
        },
        "scalar": torch.tensor(3.25),
        "empty": torch.zeros(0, 3),
        "no columns": torch.zeros(3, 0),
        "tied": [tied, tied],
        "parameter": torch.nn.Parameter(torch.randn(150, 150)),
        "step": 7,
        "text": "values beside tensors",
        "rng": b"\x00\x01" * 50,
    }


def blank(value: Any) -> Any:
    """The same nested state with other values, to be loaded into."""
    if isinstance(value, dict):
        return {key: blank(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [blank(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=torch.uint8).to(value.dtype) if not value.numel() else _zeros(value)
    return type(value)()


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(like.numel() * like.element_size(), dtype=torch.uint8).view(like.dtype).reshape(like.shape)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a nested state by their paths, tensors as their bits."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, inner in pairs for name, leaf in flat(inner, f"{path}/{key}").items()}
    return {path: bits(value) if isinstance(value, torch.Tensor) else value}


def save(state: dict[str, Any], path: Path, writer: Any = None) -> Any:
    """Save from a single process, by PyTorch's writer if there is no other; returns DCP's metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return state_dict_saver.save(state, checkpoint_id=None if writer else path, storage_writer=writer, no_dist=True)


def load(state: dict[str, Any], path: Path, reader: Any = None) -> dict[str, Any]:
    """Load into blank tensors like the state's, by PyTorch's reader if there is no other."""
    into = blank(state)
    assert isinstance(into, dict)
    load_into(into, reader, path)
    return into


def load_into(into: dict[str, Any], reader: Any, path: Path | None = None) -> None:
    """Load into a state, by PyTorch's reader of a path if there is no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state_dict_loader.load(into, checkpoint_id=None if reader else path, storage_reader=reader, no_dist=True)
