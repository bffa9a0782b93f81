"""What transformers and `safetensors_file` write and read of each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_plan
from ckpt.state import compare
from ckpt.state.layout import State
from ckpt.strategies.safetensors_file import SafetensorsFile
from support.models import llama


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    """A tiny Llama."""
    return llama(tie_word_embeddings=request.param)


def written_by_us(model: LlamaForCausalLM, directory: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int) -> State:
    """Save a model's state here, as transformers would; returns the state."""
    monkeypatch.setattr(safetensors_plan, "MIB", shard_bytes)
    state: State = dict(model.state_dict())
    directory.mkdir()
    SafetensorsFile(shard_mib=1).save(state, directory)
    return state


@pytest.mark.parametrize("shard_bytes", [10**9, 5000, 1000, 100])
def test_loads_what_transformers_wrote(model: LlamaForCausalLM, tmp_path: Path, shard_bytes: int) -> None:
    """A model that transformers saved, in one file or in shards, loads without any metadata of ours."""
    model.save_pretrained(tmp_path, max_shard_size=shard_bytes)
    found = SafetensorsFile().load(tmp_path)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name in found}
    assert compare.first_difference(expected, found) is None
    assert set(model.state_dict()) - set(found) <= {"lm_head.weight"}  # which transformers leaves out where it is tied


@pytest.mark.parametrize("shard_bytes", [10**9, 5000, 1000, 100])
def test_transformers_loads_what_was_written(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    """Transformers builds the model from our files, and finds every weight."""
    state = written_by_us(model, tmp_path / "ours", monkeypatch, shard_bytes)
    model.config.save_pretrained(tmp_path / "ours")
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert compare.first_difference(state, dict(loaded.state_dict())) is None


@pytest.mark.parametrize("shard_bytes", [10**9, 5000, 1000, 100])
def test_shards_as_transformers_does(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    """The files have the same names and tensors, and the index is the same."""
    written_by_us(model, tmp_path / "ours", monkeypatch, shard_bytes)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    ours, theirs = ({path.name for path in (tmp_path / whose).glob("*.safetensors*")} for whose in ("ours", "theirs"))
    assert theirs == ours
    if "model.safetensors.index.json" not in ours:
        return

    def index(whose: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((tmp_path / whose / "model.safetensors.index.json").read_text())
        return content

    assert index("theirs") == index("ours")


def test_an_index_that_points_elsewhere(tmp_path: Path) -> None:
    """An index can't make us read a file outside its directory."""
    index = {"metadata": {}, "weight_map": {"a": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names a file outside its directory"):
        SafetensorsFile().load(tmp_path)


def test_overlapping_views(tmp_path: Path) -> None:
    """Views of one tensor come back each on its own, whether they overlap or not."""
    whole = torch.arange(10.0)
    state = {"whole": whole, "first": whole[:6], "second": whole[3:], "tied": whole, "apart": whole[::3]}
    SafetensorsFile().save(state, tmp_path)
    assert compare.first_difference(state, SafetensorsFile().load(tmp_path)) is None
