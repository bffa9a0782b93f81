"""A snapshot is a copy: every tensor with all its bits, ties as ties, in memory that is used again."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt.background import snapshot
from ckpt.background.snapshot import SnapshotMemory, place, size_of, tensors_in
from ckpt.errors import CheckpointError
from ckpt.state.compare import poison
from ckpt.state.dtypes import BYTES_PER_ELEMENT
from ckpt.state.layout import Layout, State, TensorLayout, layout_of_state
from ckpt.testing.states import contiguous_by_name_only, every_dtype, exact, state_dicts
from support.tasks import open_here


def copy_of(memory: SnapshotMemory, state: State) -> State:
    """The tensors of a snapshot."""
    placed = memory.take(state)
    assert memory.mapped is not None
    return tensors_in(memory.mapped, placed)


def odd_tensors() -> State:
    """Views that torch computes when they are read, parameters, and a tensor that is one element many times."""
    spectrum = torch.randn(6, dtype=torch.complex64)
    return {
        "conjugate": spectrum.conj(),
        "negative": spectrum.conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(4, 3)),
        "buffer of a graph": (torch.randn(3, requires_grad=True) * 2),
        "expanded": torch.tensor(1.5).expand(5, 7),
        "reversed": torch.arange(30.0).view(5, 6).T,
        "0-d": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }


@given(drawn=state_dicts())
@example(drawn=every_dtype())
@example(drawn=contiguous_by_name_only())
@example(drawn=odd_tensors())
@example(drawn={})
def test_a_copy_of_any_state(drawn: State) -> None:
    """Names in their order, dtypes, shapes and bits are those at the call, and stay so when the state changes; tied
    tensors are one tensor, and nothing else shares memory.
    """
    before = exact({name: tensor.resolve_conj().resolve_neg() for name, tensor in drawn.items()})
    memory = SnapshotMemory()
    copies = copy_of(memory, drawn)
    with torch.no_grad():
        poison({name: tensor for name, tensor in drawn.items() if not tensor.is_neg()})
    assert before == exact(copies)
    ties = {tensor.name: tensor.same_as for tensor in layout_of_state(drawn) if tensor.elements}
    assert ties == {tensor.name: tensor.same_as for tensor in layout_of_state(copies) if tensor.elements}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in copies.values())
    assert all(tensor.data_ptr() % 4096 == 0 for tensor in copies.values())
    memory.close()


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts of any sizes, far beyond what a test can allocate, with ties."""
    tensors: list[TensorLayout] = []
    for number in range(draw(st.integers(0, 6))):
        owners = [tensor for tensor in tensors if tensor.same_as is None]
        if owners and draw(st.booleans()):
            owner = draw(st.sampled_from(owners))
            tensors.append(TensorLayout(str(number), owner.shape, owner.dtype, owner.name))
        else:
            shape = tuple(draw(st.lists(st.integers(0, 2**20), max_size=2)))
            tensors.append(TensorLayout(str(number), shape, draw(st.sampled_from(sorted(BYTES_PER_ELEMENT)))))
    return tuple(tensors)


@given(layout=layouts())
def test_places(layout: Layout) -> None:
    """Every tensor starts at a page, ends before the next, and the last within the size; tied ones lie where their
    owner lies.
    """
    placed = place(layout)
    assert list(layout) == [tensor.layout for tensor in placed]
    at = {tensor.layout.name: tensor.offset for tensor in placed}
    assert all(at[tensor.name] == at[tensor.owner] for tensor in layout)
    owners = sorted((at[tensor.name], tensor.size_bytes) for tensor in layout if tensor.same_as is None)
    ends = [offset + size_bytes for offset, size_bytes in owners]
    assert all(offset % 4096 == 0 for offset, _ in owners)
    assert all(end <= offset for end, (offset, _) in zip(ends, owners[1:], strict=False))
    assert max([0, *ends]) <= size_of(placed) < max([0, *ends]) + 4097


def test_memory_grows_and_is_used_again() -> None:
    """A smaller state, and one of the same size, use the memory that is there; a larger one makes it grow, and nothing
    is left of it before.
    """
    memory = SnapshotMemory()
    small, large = {"w": torch.ones(1000)}, {"w": torch.randn(1 << 18)}
    memory.take(small)
    opened, mapped = open_here()
    assert mapped == 1
    for state in (large, small, large, small):
        assert exact(copy_of(memory, state)) == exact(state)
        assert memory.mapped is not None
        assert len(memory.mapped) == 1 << 20
    addresses = {copy_of(memory, state)["w"].data_ptr() for state in [small, large] * 25}
    assert len(addresses) == 1
    assert open_here() == (opened, 1)
    memory.close()
    gc.collect()
    assert open_here() == (opened - 2, 0)


def test_tensors_outlive_the_memory() -> None:
    """Whoever still has tensors of a snapshot when the memory grows or is closed keeps them as they are."""
    memory = SnapshotMemory()
    first = copy_of(memory, {"w": torch.arange(5)})
    second = copy_of(memory, {"w": torch.zeros(1 << 18)})
    memory.close()
    gc.collect()
    assert first["w"].tolist() == [0] * 5  # the same pages
    assert not second["w"].any()


def test_reserved_memory_is_there() -> None:
    """After `reserve`, every page exists before anything is copied."""
    memory = SnapshotMemory()
    layout = layout_of_state({"w": torch.empty(1 << 18), "x": torch.empty(3)})
    memory.reserve(layout)
    assert os.fstat(memory.descriptor).st_blocks * 512 == (1 << 20) + 4096
    memory.close()


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is available is refused, with both numbers; growing needs only what is missing."""
    memory = SnapshotMemory()
    memory.take({"w": torch.zeros(1 << 18)})
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 1 << 20)
    memory.take({"w": torch.zeros(1 << 19)})
    with pytest.raises(CheckpointError, match=re.escape("takes 2 MB of memory, and 1 MB are available: save")):
        memory.take({"w": torch.zeros(1 << 20)})
    memory.close()


def test_available_memory() -> None:
    """It is less than all memory."""
    total = int(re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024
    assert 0 < snapshot.available_bytes() < total


def test_a_tensor_without_values() -> None:
    """A tensor on `meta` has nothing to copy: it is refused by name."""
    memory = SnapshotMemory()
    with pytest.raises(CheckpointError, match="tensor 'w' can't be copied: NotImplementedError"):
        memory.take({"w": torch.empty(3, device="meta")})
    memory.close()
