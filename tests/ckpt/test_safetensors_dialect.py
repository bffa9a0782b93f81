"""safetensors_file and safetensors_tuned read what either writes, now and before they shared one kind of metadata."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import ckpt
from ckpt.formats import safetensors_plan
from ckpt.process_group.group import SingleProcess
from ckpt.registry import create
from ckpt.state.compare import first_difference
from ckpt.state.layout import State, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Shard, Sharding

STRATEGIES = ["safetensors_file", "safetensors_tuned"]
KINDS = ["one", "shards", "dim0", "tensors"]

MATRIX = list(itertools.product(STRATEGIES, STRATEGIES, KINDS))

FROZEN = Path(__file__).parent / "data" / "safetensors"
"""Checkpoints of `state()` written before both strategies shared one kind of metadata: by strategy, then by kind."""


def state() -> State:
    """Tied tensors, complex numbers, bfloat16, scalars, an empty tensor, and names that the format doesn't allow."""
    weight = torch.arange(12.0).reshape(6, 2)
    return {
        "layer.weight": weight,
        "odd%/näme": torch.arange(5).to(torch.bfloat16),
        "layer.tied": weight,
        "__metadata__": torch.tensor(3, dtype=torch.int16),
        "": torch.tensor([True, False, True]),
        "lone \ud800 surrogate": torch.arange(4, dtype=torch.float64),
        'a "quoted" name': torch.arange(3, dtype=torch.uint8),
        "complex128": torch.complex(torch.arange(5.0).double(), -torch.arange(5.0).double()),
        "complex64": torch.complex(torch.arange(4.0), torch.ones(4)),
        "empty": torch.empty(0, 3),
        "last tied": weight,
    }


def partition(kind: str, ranks: int = 3) -> Partition:
    """The partition of a checkpoint that several ranks wrote."""
    sharding: Sharding = "dim0" if kind == "dim0" else "tensors"
    return Partition.of(layout_of_state(state()), sharding, ranks)


def tensors_of(shards: tuple[Shard, ...]) -> State:
    """What a rank has in memory: its rows of each tensor, tied tensors as one."""
    whole, tensors = state(), dict[str, torch.Tensor]()
    for shard in shards:
        name, owner = shard.whole.name, shard.whole.same_as
        rows = slice(shard.start, shard.stop) if shard.whole.shape else ...
        tensors[name] = whole[name][rows].clone() if owner is None else tensors[owner]
    return tensors


def write(name: str, kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the state in one file, in shards of at most 60 bytes, or from three ranks."""
    directory.mkdir()
    if kind in {"one", "shards"}:
        monkeypatch.setattr(safetensors_plan, "MIB", 60)
        create(name, {"shard_mib": int(kind == "shards")}).save(state(), directory)
        return
    stored = partition(kind)
    for rank in range(stored.count):
        shards = RankShards(stored, rank)
        create(name).write(tensors_of(shards.owned), directory, shards, SingleProcess())


def check_everything(loaded: State) -> None:
    """Every bit, the ties, and the order are those of the state."""
    assert first_difference(state(), loaded) is None
    assert list(loaded) == list(state())
    assert loaded["layer.weight"] is loaded["layer.tied"] is loaded["last tied"]


def check_loads(reader: str, kind: str, directory: Path, *, has_order: bool = True) -> None:
    """A reader loads a checkpoint whole, by name and by rows, and `ckpt.load` without a manifest."""
    strategy = create(reader)
    if kind != "dim0":
        loaded = strategy.load(directory)
        check_everything({name: loaded[name] for name in (loaded if has_order else state())})
        some = strategy.load(directory, ["last tied", "complex128"])
        assert torch.equal(state()["complex128"], some["complex128"])
        assert torch.equal(state()["last tied"], some["last tied"])
        assert first_difference(state(), ckpt.load(directory)) is None
    if kind in {"dim0", "tensors"}:
        stored = partition(kind)
        check_everything(strategy.read(directory, None, stored, SingleProcess()))
        other = partition(kind, ranks=2)
        for rank in range(other.count):
            shards = other.held(rank)
            wanted = {shard.whole.name: shard for shard in shards}
            loaded = strategy.read(directory, wanted, stored, SingleProcess())
            assert first_difference(tensors_of(shards), loaded) is None


@pytest.mark.parametrize(("writer", "reader", "kind"), MATRIX)
def test_either_reads_what_either_writes(
    writer: str, reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file, several files and files of several ranks load with either strategy, bit for bit and in order."""
    write(writer, kind, tmp_path / "c", monkeypatch)
    check_loads(reader, kind, tmp_path / "c")


@pytest.mark.parametrize(("writer", "reader", "kind"), MATRIX)
def test_checkpoints_of_before(writer: str, reader: str, kind: str) -> None:
    """Either strategy reads what both wrote when each had metadata of its own.

    Of several ranks, `safetensors_tuned` didn't store the order of the tensors then.
    """
    has_order = (writer, kind) != ("safetensors_tuned", "tensors")
    check_loads(reader, kind, FROZEN / writer / kind, has_order=has_order)


def described(path: Path) -> dict[str, Any]:
    """What a file or an index says about its tensors, without their offsets and checksums."""
    content = path.read_bytes()
    if path.suffix == ".json":
        index: dict[str, Any] = json.loads(content)
        return index
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    metadata = {key: json.loads(text) for key, text in header.pop("__metadata__").items() if key != "format"}
    metadata.pop("xxh3_64", None)
    return metadata | {key: (tensor["dtype"], tensor["shape"]) for key, tensor in header.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_both_write_the_same_metadata(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have the same names, tensors and metadata, but for the checksums, and the index is the same."""
    for name in STRATEGIES:
        write(name, kind, tmp_path / name, monkeypatch)
    files = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in STRATEGIES}
    assert files["safetensors_file"] == files["safetensors_tuned"]
    for file in files["safetensors_file"]:
        first, second = (described(tmp_path / name / file) for name in STRATEGIES)
        assert first == second


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_describes_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of several has what is needed to load its tensors, ties and complex numbers included."""
    write(name, "shards", tmp_path / "c", monkeypatch)
    loaded: State = {}
    for path in (tmp_path / "c").glob("*.safetensors"):
        tensors = ckpt.load(path)
        assert ("layer.weight" in tensors) == ("last tied" in tensors)
        loaded |= tensors
    assert first_difference(state(), loaded) is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_ordinary_names_are_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other readers find a tensor under its own name; only names that the format or they refuse are changed."""
    write(name, "one", tmp_path / "c", monkeypatch)
    with safe_open(tmp_path / "c" / "model.safetensors", "pt") as file:
        keys = set(file.keys())
    owners = set(state()) - {"layer.tied", "last tied"}
    assert keys == owners - {"odd%/näme", "__metadata__", "lone \ud800 surrogate"} | {
        "odd%25%2Fn%C3%A4me",
        "%__metadata__",
        "lone%20%ED%A0%80%20surrogate",
    }
