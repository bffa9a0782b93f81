"""The dtypes of a state dict: their sizes, and their way to numpy and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt.errors import CheckpointError
from ckpt.state.dtypes import BYTES_PER_ELEMENT, name_of, to_numpy, to_torch, torch_dtype
from ckpt.state.ties import owning, tied


@pytest.mark.parametrize("name", BYTES_PER_ELEMENT)
def test_names_and_sizes(name: str) -> None:
    """Every name in the table is a dtype of torch's of that size, and of that name."""
    assert BYTES_PER_ELEMENT[name] == torch_dtype(name).itemsize
    assert name == name_of(torch.empty(0, dtype=torch_dtype(name)))


@pytest.mark.parametrize("name", [name for name in BYTES_PER_ELEMENT if name != "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3), (1, 2, 6)])
def test_to_numpy_and_back(name: str, shape: tuple[int, ...]) -> None:
    """Dtype, shape and any bits survive, without a copy of a contiguous tensor."""
    tensor = torch.empty(shape, dtype=torch_dtype(name))
    flat = tensor.reshape(-1).view(torch.uint8)
    flat.copy_(torch.from_numpy(np.random.default_rng(1).integers(0, 256, flat.numel(), np.uint8)))
    array = to_numpy(tensor)
    assert name == array.dtype.name
    assert shape == array.shape
    assert array.nbytes == 0 or tensor.data_ptr() == array.ctypes.data
    back = to_torch(array)
    assert (tensor.dtype, tensor.shape, tensor.data_ptr()) == (back.dtype, back.shape, back.data_ptr())
    assert torch.equal(flat, back.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0).bfloat16()[::3],
        torch.arange(12.0)[::3][:1],
        torch.arange(3.0, requires_grad=True),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j, 3 + 4j]).conj().imag,
    ],
    ids=["transposed", "strided", "lone element", "with gradient", "conjugate", "negative"],
)
def test_views_to_numpy(view: torch.Tensor) -> None:
    """A view's values arrive, C-contiguous, however torch keeps them."""
    array = to_numpy(view)
    assert array.flags.c_contiguous
    assert torch.equal(view.detach().resolve_conj().resolve_neg(), to_torch(array))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_to_torch(dtype: str) -> None:
    """An array in any order, backwards too, becomes a contiguous tensor with its values."""
    tensor = torch.arange(6.0, dtype=torch_dtype(dtype)).reshape(2, 3)
    array = to_numpy(tensor)
    for found, expected in [(array.T, tensor.T), (array[::-1, ::2], tensor.flip(0)[:, ::2])]:
        assert torch.equal(expected, to_torch(found))
        assert to_torch(found).is_contiguous()


def test_unknown_dtypes() -> None:
    """A dtype that can't be stored, or that a checkpoint makes up, is an error that lists the ones that can."""
    with pytest.raises(CheckpointError, match=r"float8_e4m3fnuz can't be stored; expected one of bool, .* Convert"):
        name_of(torch.empty(1, dtype=torch.float8_e4m3fnuz))
    for name in ("float17", "Tensor", "load"):
        with pytest.raises(CheckpointError, match=f"has a dtype '{name}'; expected one of bool, uint8"):
            torch_dtype(name)


def test_owning() -> None:
    """Slices become tensors with a storage of their own, once where they are tied; others are the same objects."""
    whole = torch.arange(1000.0).view(10, 100)
    own = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"rows": whole[2:4], "tied": whole[2:4], "column": whole[:, 1], "own": own, "empty": torch.ones(0, 3)}
    found = owning(state)
    assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in found.values())
    assert found["own"] is own
    assert tied(state) == tied(found) == {"tied": ("rows", 1)}
