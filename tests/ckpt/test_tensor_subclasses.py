"""Tensors that only look like tensors: refused by name, whichever way they come, and tied to nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist

import ckpt
from ckpt.checkpoint import DEFAULT
from ckpt.errors import CheckpointError
from ckpt.registry import create, names
from ckpt.state import dtypes, ties
from ckpt.tree import nested
from support.strategies import usable


class Named(torch.Tensor):
    """A subclass that changes what functions do."""


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, around another: as a dequantising weight is."""

    inner: torch.Tensor

    def __new__(cls, inner: torch.Tensor) -> Self:
        """Around another tensor."""
        made: Self = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype)  # type: ignore[attr-defined]  # not in torch's stubs
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Wrapper(args[0].inner) if function is torch.ops.aten.detach.default else NotImplemented


@pytest.fixture(scope="module")
def sharded() -> Iterator[torch.nn.Module]:
    """A model that FSDP2 has sharded, over the one rank that there is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
            yield fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("strategy", names())
def test_sharded_parameters(strategy: str, sharded: torch.nn.Module, tmp_path: Path) -> None:
    """A DTensor is one rank's part of a tensor, and no strategy writes one: the message says what to do; of a strategy
    that is called by itself, too. Nothing is left behind.
    """
    usable(strategy)
    state = sharded.state_dict()
    assert type(state["0.weight"]).__name__ == "DTensor"
    if strategy != DEFAULT:
        with pytest.raises(CheckpointError, match=rf"has DTensors, which strategy {strategy} can't save: leave"):
            ckpt.save({"model": state}, tmp_path / "run" / "latest", strategy)
        assert not (tmp_path / "run").exists()
    (tmp_path / "direct").mkdir()
    with pytest.raises(CheckpointError, match=r"DTensor: .*\.full_tensor\(\)"):
        create(strategy).save(dict(state), tmp_path / "direct")
    whole = {name: tensor.full_tensor() for name, tensor in state.items()}
    ckpt.save({"model": whole}, tmp_path / "run" / "latest", strategy)
    assert torch.equal(whole["0.weight"], ckpt.load(tmp_path / "run" / "latest")["model"]["0.weight"])


def _fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2)


def _masked() -> torch.Tensor:
    from torch.masked import masked_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return masked_tensor(torch.ones(2), torch.tensor([True, False]))  # type: ignore[no-any-return]  # untyped


def _nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "Named": lambda: torch.ones(2).as_subclass(Named),
    "Wrapper": lambda: Wrapper(torch.ones(2)),
    "UninitializedParameter": torch.nn.UninitializedParameter,
    "UninitializedBuffer": torch.nn.UninitializedBuffer,
    "FakeTensor": _fake,
    "MaskedTensor": _masked,
    "NestedTensor": lambda: _nested(torch.jagged),
    "strided": lambda: _nested(torch.strided),
    "sparse_coo": lambda: torch.ones(2).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(2, device="meta"),
    "mkldnn": lambda: torch.ones(2).to_mkldnn(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind: str) -> None:
    """Every other kind is refused by its place, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of quantized tensors
        tensor = KINDS[kind]()
    with pytest.raises(CheckpointError, match=r"the state's 'a\.0' is not a plain tensor") as caught:
        nested.flatten({"a": [tensor]})
    assert kind in str(caught.value) or tensor.is_quantized
    assert "UninitializedParameter: it has no shape yet" in str(caught.value) or kind != "UninitializedParameter"


def test_buffers_are_plain() -> None:
    """torch.nn.Buffer makes a plain tensor, which is kept."""
    buffer = torch.nn.Buffer(torch.ones(2))
    assert list(nested.flatten({"b": buffer})[0]) == ["b"]


@pytest.mark.parametrize("make", [lambda: Wrapper(torch.ones(2)), _fake], ids=["wrapper", "fake"])
def test_what_has_no_memory_is_not_tied(make: Callable[[], torch.Tensor]) -> None:
    """Two tensors whose address is 0 are two: a strategy that looked for ties would keep one of them."""
    state = {"first": make(), "second": make()}
    with pytest.raises(CheckpointError, match="tensor 'first' is not a plain tensor"):
        ties.tied(state)
    meta = {name: torch.ones(2, device="meta") for name in ("first", "second")}
    assert ties.tied(meta) == {}
    with pytest.raises(CheckpointError, match="not a plain tensor"):
        dtypes.to_bytes(state["first"])
