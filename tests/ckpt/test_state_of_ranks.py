"""Ranks that share a state: each builds its own, with the values of the whole, and together they know its digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.state import compare
from ckpt.state.layout import State, TensorLayout
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.workload import building, values
from ckpt.workload.spec import StateSpec, layout_of
from support.models import llama

WriteConfig = Callable[..., str]

SHARDINGS = ["dim0", "tensors", "replicated"]


class OneByOne(SingleProcess):
    """Ranks that run one after the other, the first one last: it finds what the others left."""

    def __init__(self, rank: int, size: int, left: dict[int, Any]) -> None:
        self.rank, self.size, self._left = rank, size, left

    def gather(self, value: Any) -> list[Any]:
        """On the first rank what all left."""
        self._left[self.rank] = value
        return [self._left[rank] for rank in range(self.size)] if self.rank == 0 else []


def parts_of(spec: StateSpec, ranks: int) -> list[RankShards]:
    """Every rank's part."""
    partition = Partition.of(layout_of(spec), spec.sharding, ranks)
    return [RankShards(partition, rank) for rank in range(ranks)]


def described_together(shares: list[State], spec: StateSpec) -> dict[str, Any]:
    """What the first of the ranks with these shares says of the whole; the others say nothing."""
    parts, left = parts_of(spec, len(shares)), {}
    for rank in reversed(range(1, len(shares))):
        assert {} == building.describe(shares[rank], spec, parts[rank], OneByOne(rank, len(shares), left))
    return building.describe(shares[0], spec, parts[0], OneByOne(0, len(shares), left))


def together(parts: list[RankShards], shares: list[State]) -> State:
    """The whole state, put together from its shares as their slices say."""
    pieces: dict[str, list[torch.Tensor]] = {}
    for part, share in zip(parts, shares, strict=True):
        for each in part.owned:
            pieces.setdefault(each.whole.name, []).append(share[each.whole.name])
    found = {name: torch.cat(each) if len(each) > 1 else each[0] for name, each in pieces.items()}
    return {tensor.name: found[tensor.name] for tensor in parts[0].partition.tensors}


@pytest.fixture
def model(write_config: WriteConfig) -> str:
    """A configuration with a tensor of two blocks, whose rows no number of ranks here divides, and a tied one."""
    return write_config(vocab_size=70_003, num_hidden_layers=1, tie_word_embeddings=True)


@pytest.mark.parametrize("contents", ["weights", "training"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_number_of_ranks_does_not_matter(sharding: Any, contents: Any, model: str) -> None:
    """However many ranks share a state, their shares are the whole's, and what is said of it is the same."""
    spec = StateSpec(model, sharding=sharding, contents=contents)
    whole = building.build(spec)
    expected = building.describe(whole, spec)
    assert expected["digest"] == building.digest(whole)
    for ranks in (1, 2, 3, 4, 8):
        parts = parts_of(spec, ranks)
        shares = [building.build(spec, part) for part in parts]
        for part, share in zip(parts, shares, strict=True):
            held = [(each.whole.name, each.layout.shape) for each in part.held]
            assert held == [(name, tuple(tensor.shape)) for name, tensor in share.items()]
        if sharding == "replicated":
            assert [None] * ranks == [compare.first_difference(whole, share) for share in shares]
        else:
            assert compare.first_difference(whole, together(parts, shares)) is None
        assert expected == described_together(shares, spec)


def test_sharding_does_not_matter(model: str) -> None:
    """Whoever holds what, the digest of the whole is that of one process."""
    digests = set()
    for sharding in SHARDINGS:
        spec = StateSpec(model, sharding=sharding)  # type: ignore[arg-type]
        digests.add(described_together([building.build(spec, part) for part in parts_of(spec, 3)], spec)["digest"])
    assert {building.digest(building.build(StateSpec(model)))} == digests


def test_tied_tensors_are_one_in_a_share(model: str) -> None:
    """A rank's rows of tied tensors are the same memory."""
    for sharding in SHARDINGS:
        spec = StateSpec(model, sharding=sharding)  # type: ignore[arg-type]
        shares = [building.build(spec, part) for part in parts_of(spec, 2)]
        holding = [share for share in shares if "lm_head.weight" in share]
        assert holding
        for share in holding:
            assert share["lm_head.weight"] is share["model.embed_tokens.weight"]


@given(
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ranks=st.integers(1, 12),
    block_elements=st.integers(1, 12),
)
def test_pieces(shape: tuple[int, ...], ranks: int, block_elements: int) -> None:
    """The ranks' pieces are all blocks, each element once, where it lies; and each block begins with one rank."""
    tensor = TensorLayout("a", shape, "float32")
    tied = TensorLayout("b", shape, "float32", "a")
    found: list[int] = []
    begins: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "BLOCK_ELEMENTS", block_elements)
        for rank in range(ranks):
            held: list[int] = []
            for piece in values.pieces(Partition.of((tensor, tied), "dim0", ranks).held(rank)):
                assert tensor == piece.tensor
                origin = piece.number * block_elements
                block = list(range(origin, min(origin + block_elements, tensor.elements)))
                assert (block[piece.within] == block) == piece.is_whole
                assert len(held) == piece.held.start
                held += block[piece.within]
                assert len(held) == piece.held.stop
                begins += [piece.number] * (piece.within.start == 0)
            found += held
    assert list(range(tensor.elements)) == found
    assert list(range(-(-tensor.elements // block_elements))) == begins


def test_share_in_bounded_memory(fresh_python: Callable[..., str]) -> None:
    """One share of a state that no machine holds takes its own size to build and describe, and a few blocks."""
    code = (
        "import os, resource\n"
        "from ckpt.workload import building\n"
        "from ckpt.workload.spec import StateSpec, layout_of; from ckpt.state.layout import state_bytes\n"
        "from ckpt.process_group.group import SingleProcess\n"
        "from ckpt.state.sharding import Partition, RankShards\n"
        "class OneOfMany(SingleProcess):\n"
        "    rank, size = 4000, 4096\n"
        "    def gather(self, value): return []\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "os.sched_getaffinity = lambda pid: {0, 1}\n"
        "building.build(StateSpec('llama-15m', tensors=1))\n"
        "spec = StateSpec('llama-3-405b', contents='training', tensors=4)\n"
        "part = RankShards(Partition.of(layout_of(spec), 'dim0', 4096), 4000)\n"
        "before = peak()\n"
        "share = building.build(spec, part)\n"
        "building.describe(share, spec, part, OneOfMany())\n"
        "own = sum(tensor.nbytes for tensor in share.values())\n"
        "print(state_bytes(layout_of(spec)), own, peak() - before)\n"
    )
    whole_bytes, own_bytes, taken_bytes = map(int, fresh_python(code).split())
    assert whole_bytes == 14 * 2_403_336_192
    assert own_bytes < whole_bytes / 4000
    assert taken_bytes < own_bytes + 32 * 4 * values.BLOCK_ELEMENTS


def test_changed_share(model: str) -> None:
    """A value that changed is an error where a block lies with several ranks, on whichever rank it is."""
    spec = StateSpec(model)
    parts = parts_of(spec, 3)
    for rank, row in [(0, -1), (1, 0), (1, -1), (2, 0)]:
        share = building.build(spec, parts[rank])
        share["model.embed_tokens.weight"][row] = 1
        with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight: block \d no longer has the values"):
            building.describe(share, spec, parts[rank], OneByOne(rank, 3, {}))


def test_changed_block_of_one_rank(model: str) -> None:
    """A value that changed in a block that one rank has alone changes the digest."""
    spec = StateSpec(model, sharding="tensors")
    parts = parts_of(spec, 2)
    shares = [building.build(spec, part) for part in parts]
    good = described_together(shares, spec)["digest"]
    next(iter(shares[1].values()))[0] = 1
    assert good != described_together(shares, spec)["digest"]


def test_replicas_that_differ(write_config: WriteConfig) -> None:
    """Ranks that should all hold the same are told apart."""
    spec = StateSpec(write_config(), sharding="replicated")
    shares = [building.build(spec, part) for part in parts_of(spec, 4)]
    shares[2]["model.norm.weight"][0] = 1
    with pytest.raises(CheckpointError, match=r"rank 0 holds another state than rank 2$"):
        described_together(shares, spec)


def test_training_values(model: str) -> None:
    """The model as it is alone; master weights like weights and small moments, not negative where they are squares;
    all with the full precision of float32, no two alike.
    """
    built = building.build(StateSpec(model, contents="training"))
    alone = building.build(StateSpec(model))
    assert compare.first_difference(alone, {name: built[name] for name in alone}) is None
    master, average, square = (
        built[f"optimizer.{kind}.model.embed_tokens.weight"] for kind in ("master", "exp_avg", "exp_avg_sq")
    )
    assert abs(master.std().item() - 0.02) < 1e-4
    assert abs(average.std().item() - 1e-4 / 10**0.5) < 1e-6
    assert abs(square.mean().item() - 1e-8) < 1e-10
    assert (square >= 0).all()
    for tensor in (master, average, square):
        assert tensor.dtype == torch.float32
        trailing = tensor.view(torch.int32) & 0xFFFF
        assert len(torch.unique(trailing)) > 60_000  # of 65,536
    assert not torch.allclose(master[:9] / 0.02, average[:9] / 1e-4 * 10**0.5)


def save_model(directory: Path, **changes: Any) -> State:
    """A Hugging Face directory with the weights of a tiny Llama; returns them."""
    model = llama(num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(directory, **changes)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


@pytest.fixture
def transformers_loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How often transformers was asked to load the whole model."""
    calls: list[Any] = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: calls.append(args) or load(*args, **kwargs)
    )
    return calls


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("how", ["one file", "several files", "torch files"])
def test_real_weights(
    how: str, dtype: Any, tmp_path: Path, transformers_loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank's rows are those of the directory's weights, and no more is read than the blocks with them; only what
    isn't safetensors is loaded whole.
    """
    monkeypatch.setattr(values, "BLOCK_ELEMENTS", 100)
    weights = save_model(tmp_path, **({"max_shard_size": "4KB"} if how == "several files" else {}))
    if how == "torch files":
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    spec = StateSpec(str(tmp_path), dtype=dtype, contents="training")
    whole = building.build(spec)
    expected = {name: tensor.to(getattr(torch, dtype or "float32")) for name, tensor in weights.items()}
    assert compare.first_difference(expected, {name: whole[name] for name in expected}) is None
    parts = parts_of(spec, 3)
    shares = [building.build(spec, part) for part in parts]
    assert compare.first_difference(whole, together(parts, shares)) is None
    described = described_together(shares, spec)
    assert ("weights", building.digest(whole)) == (described["values"], described["digest"])
    assert (how == "torch files") == bool(transformers_loads)


def test_real_weights_that_only_transformers_understands(tmp_path: Path, transformers_loads: list[Any]) -> None:
    """Weights under other names than the model's are loaded by who knows what they mean."""
    from safetensors.torch import load_file, save_file

    weights = save_model(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor.clone() for name, tensor in stored.items()}, file, metadata={"format": "pt"})
    assert compare.first_difference(weights, building.build(StateSpec(str(tmp_path)))) is None
    assert 1 == len(transformers_loads)


def test_pieces_of_tensors_without_elements() -> None:
    """A tensor without rows, or without anything in its rows, has no blocks; one without dimensions has one."""
    share = tuple(
        Shard(tensor, 0, tensor.shape[0] if tensor.shape else 1)
        for tensor in (
            TensorLayout("a", (0, 3), "int8"),
            TensorLayout("b", (3, 0), "int8"),
            TensorLayout("c", (), "int8"),
        )
    )
    assert ["c"] == [piece.tensor.name for piece in values.pieces(share)]


def test_the_first_rank_compares_the_plan_with_transformers(
    monkeypatch: pytest.MonkeyPatch, write_config: WriteConfig
) -> None:
    """A wrong plan is refused by the rank that all wait for; the others don't import transformers for it."""
    spec = StateSpec(write_config(), tensors=2)
    first, second = parts_of(spec, 2)
    monkeypatch.setattr(building, "meta_layout", lambda _: layout_of(spec)[::-1])
    with pytest.raises(CheckpointError, match="builds other tensors"):
        building.build(spec, first)
    with pytest.raises(CheckpointError, match="builds other tensors"):
        building.build(spec)
    assert {tensor.name for tensor in layout_of(spec)} == building.build(spec, second).keys()
