"""safetensors of several ranks: what other programs read of it, and what is loaded on other numbers of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.process_group.group import SingleProcess
from ckpt.registry import create
from ckpt.state import compare
from ckpt.state.layout import TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards, Sharding
from ckpt.strategy import Strategy
from support.groups import UnaskedGroup
from support.models import llama

INDEX = "model.safetensors.index.json"


@pytest.fixture(params=["safetensors_file", "safetensors_tuned", "fastsafetensors"])
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Each strategy that writes the format."""
    pytest.importorskip("fastsafetensors" if request.param == "fastsafetensors" else "torch")
    return create(request.param)


def model_on(ranks: int, sharding: Sharding, strategy: Strategy, directory: Path) -> LlamaForCausalLM:
    """A tiny Llama, saved by so many ranks."""
    model = llama()
    state = dict(model.state_dict())
    partition = Partition.of(layout_of_state(state), sharding, ranks)
    for rank in range(ranks):
        part = RankShards(partition, rank)
        share = {each.whole.name: state[each.whole.name][each.start : each.stop] for each in part.owned}
        strategy.write(share, directory, part, SingleProcess())
    model.config.save_pretrained(directory)
    return model


@pytest.mark.parametrize("sharding", ["tensors", "replicated"])
def test_whole_tensors_are_a_standard_checkpoint(strategy: Strategy, sharding: Sharding, tmp_path: Path) -> None:
    """Through the index every tensor is found by safetensors, and transformers builds the model."""
    state = dict(model_on(4, sharding, strategy, tmp_path).state_dict())
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    found = {}
    for name, file in weight_map.items():
        with safe_open(tmp_path / file, "pt") as opened:
            found[name] = opened.get_tensor(name)
    assert {f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)} == set(weight_map.values())
    assert compare.first_difference(state, found) is None
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert compare.first_difference(state, dict(loaded.state_dict())) is None


def test_rows_are_not_taken_for_whole_tensors(strategy: Strategy, tmp_path: Path) -> None:
    """Who knows nothing of rows fails on a file whose name says why, and loads no part of a tensor."""
    model_on(4, "dim0", strategy, tmp_path)
    with pytest.raises(FileNotFoundError, match="rows-in-each-of-00004-files"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="rows-in-each-of-00004-files"):
        strategy.load(tmp_path)


def test_rows_say_where_they_belong(strategy: Strategy, tmp_path: Path) -> None:
    """Each file holds its rows under the tensor's name, and its metadata say which of how many these are."""
    model = model_on(4, "dim0", strategy, tmp_path)
    with safe_open(tmp_path / "model-00002-of-00004.safetensors", "pt") as opened:
        rows = json.loads(opened.metadata()["rows_of_whole"])
        part = opened.get_tensor("lm_head.weight")
    assert [13, 50] == rows["lm_head.weight"]
    assert torch.equal(part, model.lm_head.weight[13:26])


@pytest.mark.parametrize("sharding", ["dim0", "tensors", "replicated"])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_kind_of_tensor(
    together: Any, strategy: Strategy, sharding: Sharding, ranks: int, tmp_path: Path
) -> None:
    """What each rank saved comes back, whatever the dtype, shape or name; the files are those that ranks told of,
    no more than was planned.
    """
    partition = together.partition(sharding, ranks)
    files = [file for each in together.save(strategy, tmp_path, partition) for file in each]
    assert sorted(files) == sorted(path for path in tmp_path.iterdir() if path.is_file())
    planned, found = strategy.footprint(partition), listing.inventory(tmp_path)
    assert planned.file_count == found.file_count
    assert planned.size_bytes >= found.apparent_bytes
    together.load(strategy, tmp_path, partition, ranks)


@pytest.mark.parametrize("sharding", ["tensors", "replicated"])
def test_whole_tensors_load_in_one_process(
    together: Any, strategy: Strategy, sharding: Sharding, tmp_path: Path
) -> None:
    """Where tensors are whole, `load` knows the checkpoint too, tied tensors as one."""
    together.save(strategy, tmp_path, together.partition(sharding, 3))
    loaded = strategy.load(tmp_path)
    loaded.setdefault("tied", loaded["odd%/name"])
    assert compare.first_difference(together.state, loaded) is None


@pytest.mark.parametrize("sharding", ["dim0", "tensors", "replicated"])
@pytest.mark.parametrize(("saved", "loaded"), [(4, 2), (2, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize("name", ["safetensors_file", "safetensors_tuned"])
def test_another_number_of_ranks(
    together: Any, name: str, saved: int, loaded: int, sharding: Sharding, tmp_path: Path
) -> None:
    """Any number of ranks loads what any number saved."""
    partition = together.partition(sharding, saved)
    together.save(create(name), tmp_path, partition)
    together.load(create(name), tmp_path, partition, loaded)
    if name == "safetensors_tuned":
        together.load(create(name, {"verify": True}), tmp_path, partition, loaded)


def test_whole_tensors_are_all_that_fastsafetensors_reads(together: Any, tmp_path: Path) -> None:
    """Its reader has no rows: other numbers of ranks are for replicated states only."""
    pytest.importorskip("fastsafetensors")
    strategy = create("fastsafetensors")
    replicated, sharded = together.partition("replicated", 3), together.partition("dim0", 3)
    together.save(strategy, tmp_path, replicated)
    together.load(strategy, tmp_path, replicated, 2)
    with pytest.raises(CheckpointError, match="can load what 3 ranks saved on 3 ranks only"):
        together.load(strategy, tmp_path, sharded, 2)


def test_only_wanted_rows_are_read(tmp_path: Path) -> None:
    """A rank that wants a tenth of the rows reads hardly more than a tenth of the bytes."""
    state = {"a": torch.arange(10 * 2**20, dtype=torch.int32).reshape(10, -1)}
    partition = Partition.of(layout_of_state(state), "dim0", 1)
    create("safetensors_file").write(state, tmp_path, RankShards(partition, 0), SingleProcess())
    wanted = RankShards(Partition.of(partition.tensors, "dim0", 10), 3)
    before = read_bytes()
    create("safetensors_tuned").read(tmp_path, wanted.wanted, partition, SingleProcess())
    assert 4 * 2**20 <= read_bytes() - before < 6 * 2**20
    mapped = create("safetensors_file").read(tmp_path, wanted.wanted, partition, SingleProcess())
    assert 4 * 2**20 == mapped["a"].untyped_storage().nbytes()
    assert not compare.mapped_file(mapped)  # it was read through a mapping, and is in memory now


def read_bytes() -> int:
    """What this process has read of files."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


@pytest.mark.parametrize("sharding", ["dim0", "tensors"])
@pytest.mark.parametrize("file", ["model-00002-of-00003.safetensors", INDEX])
def test_a_file_that_is_missing(
    together: Any, strategy: Strategy, sharding: Sharding, file: str, tmp_path: Path
) -> None:
    """A rank that needs a file that was lost says which one."""
    partition = together.partition(sharding, 3)
    together.save(strategy, tmp_path, partition)
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=f"no complete checkpoint: it lacks {file}"):
        strategy.read(tmp_path, RankShards(partition, 1).wanted, partition, UnaskedGroup(1, partition.count))


def test_a_file_with_other_rows(together: Any, strategy: Strategy, tmp_path: Path) -> None:
    """A file that was put in another's place is found out, though it has the same names and shapes."""
    partition = together.partition("dim0", 5)
    together.save(strategy, tmp_path, partition)
    shutil.copy(tmp_path / "model-00001-of-00005.safetensors", tmp_path / "model-00002-of-00005.safetensors")
    with pytest.raises(CheckpointError, match=r"belongs to another checkpoint: of tensor .* it holds .* expected"):
        strategy.read(tmp_path, RankShards(partition, 1).wanted, partition, UnaskedGroup(1, partition.count))


def test_an_index_that_is_wrong(together: Any, tmp_path: Path) -> None:
    """An index that names another rank's file is found out by who reads through it."""
    together.save(create("safetensors_file"), tmp_path, together.partition("tensors", 3))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00003.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"names tensor .* in model-00001-of-00003.safetensors, which has none of that name"
    ):
        create("safetensors_file").load(tmp_path)


@pytest.mark.parametrize("name", ["safetensors_file", "safetensors_tuned"])
def test_shards_are_for_one_rank(together: Any, name: str, tmp_path: Path) -> None:
    """Several ranks write a file each: an option that asks for more is refused, already when a study is planned."""
    strategy, partition = create(name, {"shard_mib": 1}), together.partition("dim0", 2)
    with pytest.raises(CheckpointError, match="leave shard_mib out"):
        strategy.footprint(partition)
    with pytest.raises(CheckpointError, match="leave shard_mib out"):
        together.save(strategy, tmp_path, partition)
    together.save(strategy, tmp_path, together.partition("dim0", 1))
    together.load(strategy, tmp_path, together.partition("dim0", 1), 2)


def test_a_checksum_of_each_slice(tmp_path: Path) -> None:
    """A flipped bit in one rank's rows is found by who verifies, also by a rank that wants other rows of that file."""
    partition = Partition.of((TensorLayout("a", (4, 1000), "float32"),), "dim0", 2)
    for rank in range(2):
        create("safetensors_tuned").write(
            {"a": torch.zeros(2, 1000)}, tmp_path, RankShards(partition, rank), SingleProcess()
        )
    path = tmp_path / "model-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    four = Partition.of(partition.tensors, "dim0", 4)
    strategy = create("safetensors_tuned", {"verify": True})
    strategy.read(tmp_path, RankShards(four, 1).wanted, partition, SingleProcess())
    with pytest.raises(CheckpointError, match="'a' is not what was written"):
        strategy.read(tmp_path, RankShards(four, 2).wanted, partition, SingleProcess())
