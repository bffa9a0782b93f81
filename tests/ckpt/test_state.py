"""The tensors that are checkpointed: seeded, realistic, compared bit for bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import CheckpointError
from ckpt.state import compare
from ckpt.state.dtypes import BYTES_PER_ELEMENT, torch_dtype
from ckpt.state.layout import State, TensorLayout, parameters, state_bytes
from ckpt.state.sharding import Shard
from ckpt.workload import building
from ckpt.workload.spec import StateSpec, layout_of
from ckpt.workload.values import BLOCK_ELEMENTS, Seeded
from support.models import llama

WriteConfig = Callable[..., str]


@pytest.fixture
def model(write_config: WriteConfig) -> str:
    """A configuration with one tensor of three blocks, the last of them not full."""
    return write_config(vocab_size=140_000, num_hidden_layers=1, tie_word_embeddings=True)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """A view of a contiguous tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def test_layout(model: str) -> None:
    """What is built is what was planned: names in order, shapes, dtypes, ties, bytes."""
    spec = StateSpec(model)
    layout, built = layout_of(spec), building.build(spec)
    planned = [(tensor.name, tensor.shape, f"torch.{tensor.dtype}") for tensor in layout]
    assert planned == [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in built.items()]
    assert built["lm_head.weight"] is built["model.embed_tokens.weight"]
    facts = building.describe(built, spec)
    assert (len(layout), parameters(layout), state_bytes(layout), "float16", "normal-bfloat16") == (
        *(facts[key] for key in ("tensors", "parameters", "state_bytes", "dtypes", "values")),
    )


def test_first_tensors(model: str) -> None:
    """The first tensors of a model have the values that they have in the whole."""
    whole, part = building.build(StateSpec(model)), building.build(StateSpec(model, tensors=3))
    assert list(whole)[:3] == list(part)
    assert compare.first_difference({name: whole[name] for name in part}, part) is None


def test_seed(model: str) -> None:
    """The same seed makes the same state; another seed changes every tensor."""
    one, again, other = (building.build(StateSpec(model, seed=seed)) for seed in (1, 1, 2))
    assert building.digest(one) == building.digest(again)
    assert building.digest(one) != building.digest(other)
    assert [name for name in one if torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (StateSpec("llama-15m"), "c9c321fbf49833ee4f7a857d01c75771ec9cd6181abdd340b69e3f56faa1b942"),
        (
            StateSpec("llama-15m", dtype="float32", values="normal", seed=7, tensors=9),
            "9f91bafb0b4de6f9886ac517e075ba36cf27310a517b9ff0b6dc4107f7f051a2",
        ),
    ],
    ids=["as trained", "not rounded"],
)
def test_digest_stays(spec: StateSpec, expected: str) -> None:
    """Logs of earlier versions are continued: a state's values and digest never change."""
    assert expected == building.describe(building.build(spec), spec)["digest"]


def test_threads_do_not_matter(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One core or sixty-four: the same values and the same digest."""
    digests = set()
    for cores in (1, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cores=cores: set(range(cores)))
        digests.add(building.digest(building.build(StateSpec(model))))
    assert len(digests) == 1


def test_no_two_parts_are_alike(model: str) -> None:
    """Every tensor and every block begins differently, so that no layer below can deduplicate them."""
    built = building.build(StateSpec(model))
    unique = {id(tensor): tensor.reshape(-1) for tensor in built.values()}.values()
    beginnings = [part[:16].numpy().tobytes() for tensor in unique for part in tensor.split(BLOCK_ELEMENTS)]
    assert len(unique) + 2 == len(beginnings)
    assert len(set(beginnings)) == len(beginnings)
    within = next(iter(unique))[:BLOCK_ELEMENTS].view(-1, 16)
    assert len(within) == len(torch.unique(within, dim=0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values(dtype: str, model: str) -> None:
    """normal(0, 0.02), every value one that bfloat16 can hold, or, if asked for, one that it can't."""
    for values, rounded in (("normal-bfloat16", True), ("normal", dtype == "bfloat16")):
        spec = StateSpec(model, dtype=dtype, values=values)  # type: ignore[arg-type]
        embedding = building.build(spec)["model.embed_tokens.weight"].float()
        assert abs(embedding.mean().item()) < 1e-4
        assert abs(embedding.std().item() - 0.02) < 1e-4
        # Below its normal range float16 has fewer bits than bfloat16.
        normal = embedding[embedding.abs() >= torch.finfo(torch.float16).tiny]
        assert rounded == torch.equal(normal, normal.bfloat16().float())


def test_fill_covers_every_element() -> None:
    """No element of any dtype that a model may have is left as it was, at the edges of blocks either."""
    block = Seeded(StateSpec("openllama-3b")).block
    size = BLOCK_ELEMENTS + 3
    filled = {name: torch.empty(size, dtype=torch_dtype(name)) for name in ("bfloat16", "float32", "int64", "bool")}
    again = {name: torch.empty_like(tensor) for name, tensor in filled.items()}
    compare.poison(filled)
    share = [Shard(TensorLayout(name, (size,), name), 0, size) for name in filled]
    building.fill(filled, tuple(share), block)
    building.fill(again, tuple(share), block)
    assert compare.first_difference(filled, again) is None


def test_digest_is_plain_sha256() -> None:
    """Anyone can compute a digest: SHA-256 of each block of 2^20 elements, then of names, dtypes, shapes and those."""
    tensor = torch.arange(BLOCK_ELEMENTS + 5, dtype=torch.int32).reshape(-1, 1)
    data = tensor.numpy().tobytes()
    whole = hashlib.sha256(repr(("a.weight", "int32", (BLOCK_ELEMENTS + 5, 1))).encode())
    whole.update(hashlib.sha256(data[: 4 * BLOCK_ELEMENTS]).digest())
    whole.update(hashlib.sha256(data[4 * BLOCK_ELEMENTS :]).digest())
    assert whole.hexdigest() == building.digest({"a.weight": tensor})


@st.composite
def one_bit_apart(draw: st.DrawFn) -> tuple[State, State, str]:
    """Two states that differ in one bit, and the name of the tensor where they do."""
    names = draw(st.lists(st.text(st.characters(exclude_categories=())), unique=True, min_size=1, max_size=4))
    one: State = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(BYTES_PER_ELEMENT)))
        one[name] = torch.empty(draw(st.lists(st.integers(1, 3), max_size=3)), dtype=torch_dtype(dtype))
        random = np.random.default_rng(draw(st.integers(0, 9)))
        high = 2 if dtype == "bool" else 256  # torch has no other booleans
        bytes_of(one[name]).copy_(torch.from_numpy(random.integers(0, high, one[name].nbytes, np.uint8)))
    other = {name: tensor.clone() for name, tensor in one.items()}
    changed = draw(st.sampled_from(names))
    flat = bytes_of(other[changed])
    bit = 0 if other[changed].dtype == torch.bool else draw(st.integers(0, 7))
    flat[draw(st.integers(0, flat.numel() - 1))] ^= 1 << bit
    return one, other, changed


@given(one_bit_apart())
def test_one_flipped_bit(pair: tuple[State, State, str]) -> None:
    """A single bit in any tensor changes the digest and is found, NaNs and negative zeros no exception."""
    one, other, changed = pair
    assert building.digest(one) != building.digest(other)
    assert compare.first_difference(one, other) == f"{changed}: 1 of {one[changed].nbytes} bytes differ"
    equal = {name: tensor.clone() for name, tensor in one.items()}
    assert building.digest(one) == building.digest(equal)
    assert compare.first_difference(one, equal) is None


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"a": torch.zeros(2, 3)}, "names differ: missing ['b'], not expected []"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)}, "missing [], not expected ['c']"),
        ({"a": torch.zeros(2, 3), "B": torch.zeros(4)}, "missing ['b'], not expected ['B']"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, "a: expected torch.float32 [2, 3], found torch.float32 [3, 2]"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int32)}, "torch.float32 [4], found torch.int32 [4]"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(4, 1)}, "b: expected torch.float32 [4], found torch.float32 [4, 1]"),
        ({"a": torch.zeros(2, 3), "b": -torch.zeros(4)}, "b: 4 of 16 bytes differ"),
    ],
    ids=["missing", "surplus", "renamed", "transposed", "dtype", "rank", "negative zeros"],
)  # fmt: skip
def test_differences_beside_values(other: State, difference: str) -> None:
    """A name, shape or dtype that differs changes the digest and is told, even where all bytes are equal."""
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert difference in str(compare.first_difference(state, other))
    assert building.digest(state) != building.digest(other)


def test_order_of_names() -> None:
    """The digest knows the order of names; the comparison leaves it aside."""
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    turned = dict(reversed(state.items()))
    assert building.digest(state) != building.digest(turned)
    assert compare.first_difference(state, turned) is None


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(6.0)[::2],
        torch.arange(6.0)[::2][:1],
        torch.ones(1).expand(4),
        torch.tensor([1 + 2j, 3]).conj(),
        torch.tensor([1 + 2j, 3]).conj().imag,
        torch.tensor(1.0),
        torch.empty(0, 2),
    ],
    ids=["transposed", "strided", "lone element", "expanded", "conjugate", "negative", "0-d", "empty"],
)
def test_views(view: torch.Tensor) -> None:
    """A view has the digest of its values in memory of their own; poison reaches it, and leaves no part of it."""
    state = {"x": view}
    owned = {"x": view.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)}
    assert building.digest(owned) == building.digest(state)
    assert compare.first_difference(owned, state) is None
    mine = {"x": view.clone(memory_format=torch.preserve_format)}
    compare.poison(mine)
    assert mine["x"].numel() == 0 or not (mine["x"] == owned["x"]).any()


def test_real_weights(tmp_path: Path) -> None:
    """A Hugging Face directory gives the weights that lie in it, in the study's dtype, as many as asked for."""
    model = llama(num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    spec = StateSpec(str(tmp_path))
    built = building.build(spec)
    assert list(weights) == list(built) == [tensor.name for tensor in layout_of(spec)]
    assert compare.first_difference(weights, built) is None
    facts = building.describe(built, spec)
    assert ("weights", state_bytes(layout_of(spec))) == (facts["values"], facts["state_bytes"])

    part = building.build(StateSpec(str(tmp_path), tensors=2, dtype="bfloat16"))
    expected = {name: weights[name].bfloat16() for name in list(weights)[:2]}
    assert compare.first_difference(expected, part) is None


def test_missing_weights(write_config: WriteConfig, tmp_path: Path) -> None:
    """A directory with a configuration and no weights is an error, not a state of random values."""
    Path(write_config()).rename(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="can't load the weights in"):
        building.build(StateSpec(str(tmp_path)))
