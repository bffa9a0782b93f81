"""What other programs wrote: recognised by its content, loaded without running anything, and told of what is left."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import torch
import zarr
from safetensors.torch import save_file

import ckpt
from ckpt import CheckpointError, CheckpointWarning
from support.command_lines import run_module
from support.foreign import names_of


def printed(*arguments: str) -> tuple[int, str]:
    """The exit code of `python -m ckpt` and all that it prints."""
    done = run_module("ckpt", *arguments, columns=200)
    return done.returncode, done.stdout + done.stderr


def trainer(directory: Path) -> Path:
    """A checkpoint as transformers' Trainer leaves it."""
    directory.mkdir()
    parameter = torch.ones(2, 3, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    save_file({"w": parameter.detach()}, directory / "model.safetensors", {"format": "pt"})
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    torch.save(torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(), directory / "scheduler.pt")
    numpy_state = np.random.get_state()  # noqa: NPY002  # the Trainer saves that of the global generator
    states = {"python": random.getstate(), "numpy": numpy_state, "cpu": torch.get_rng_state()}
    torch.save(states, directory / "rng_state.pth")
    torch.save(argparse.Namespace(output_dir="out"), directory / "training_args.bin")
    (directory / "trainer_state.json").write_text('{"global_step": 5}')
    (directory / "config.json").write_text("{}")
    return directory


def test_a_trainer_checkpoint(tmp_path: Path) -> None:
    """The model is loaded, and a warning names what lies beside it and the call that loads it; so does `inspect`."""
    directory = trainer(tmp_path / "checkpoint-5")
    beside = (
        r"optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin, trainer_state.json.*ckpt.load.*optimizer.pt"
    )
    with pytest.warns(CheckpointWarning, match=beside):
        assert ["w"] == list(ckpt.load(directory))
    with pytest.warns(CheckpointWarning, match=beside):
        ckpt.inspect(directory)
    code, text = printed("load", str(directory))
    assert code == 0
    assert "1 tensors, digest" in text
    assert [True] == [line.startswith("warning: ") for line in text.splitlines() if "optimizer.pt" in line]
    assert "Traceback" not in text


def test_the_files_of_a_trainer_checkpoint(tmp_path: Path) -> None:
    """Each file is loaded by its own path, as it was saved, numpy's random state too; the arguments, whose classes
    only running the file would make, are refused by the name of what they hold, and nothing runs.
    """
    directory = trainer(tmp_path / "checkpoint-5")
    optimizer = ckpt.load(directory / "optimizer.pt")
    assert optimizer["param_groups"][0]["betas"] == (0.9, 0.999)
    assert "state.0.exp_avg" in names_of(directory / "optimizer.pt")
    part = ckpt.load(directory / "optimizer.pt", ["state.0.exp_avg"])
    assert torch.equal(part["state.0.exp_avg"], optimizer["state"][0]["exp_avg"])
    states = ckpt.load(directory / "rng_state.pth")
    np.random.set_state(states["numpy"])  # noqa: NPY002  # as above
    random.setstate(states["python"])
    torch.set_rng_state(states["cpu"])
    assert ckpt.load(directory / "scheduler.pt")["step_size"] == 3
    assert ["w"] == list(ckpt.load(directory / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"holds argparse.Namespace, which can't be read without running"):
        ckpt.load(directory / "training_args.bin")
    with pytest.raises(
        CheckpointError, match=r"trainer_state.json is not a checkpoint in a known format.*Supported are"
    ):
        ckpt.load(directory / "trainer_state.json")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_name_classes(tmp_path: Path, zipped: bool) -> None:
    """A file that would run something, also one from before torch 1.6, is refused by name, and has not run."""
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> object:
            return Path.touch, (sprung,)

    torch.save({"w": torch.ones(2), "trap": Trap()}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match="which can't be read without running code that the file names; none was run"
    ):
        ckpt.load(tmp_path / "m.ckpt")
    assert not sprung.exists()


def test_old_files_of_torch(tmp_path: Path) -> None:
    """A file from before torch 1.6 loads; what is in it, only a load tells."""
    torch.save({"w": torch.ones(2)}, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(torch.ones(2), ckpt.load(tmp_path / "model.bin")["w"])
    assert ckpt.inspect(tmp_path / "model.bin").tensors is None


def test_weights_of_before_safetensors(tmp_path: Path) -> None:
    """`pytorch_model.bin`, and its shards by their index, load by the directory; a missing shard is named, and so is
    a tensor that is in two.
    """
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"step": 3}, tmp_path / "optimizer.bin")
    with pytest.warns(CheckpointWarning, match=r"not loaded: optimizer.bin"):
        assert ["w"] == list(ckpt.load(tmp_path))
    shards = tmp_path / "shards"
    shards.mkdir()
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.ones(2)}, shards / "one.bin")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: it lacks two.bin"):
        ckpt.load(shards)
    torch.save({"b": torch.zeros(2)}, shards / "two.bin")
    assert ["a", "b"] == list(ckpt.load(shards))
    torch.save({"b": torch.zeros(2), "a": torch.zeros(2)}, shards / "two.bin")
    with pytest.raises(CheckpointError, match=r"tensor 'a' is in two.bin and in another file"):
        ckpt.load(shards)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_groups(tmp_path: Path, version: Any) -> None:
    """A group of zarr-python, with groups in it, is a tensor for each array of numbers, by its path; texts are left,
    and named.
    """
    group = zarr.open_group(tmp_path / "g", mode="w", zarr_format=version)
    group.create_array("a/b", data=np.arange(6, dtype=">f4").reshape(2, 3), chunks=(1, 2))
    group.create_array("c", data=np.array([True, False]))
    group.create_array("a/zero", shape=(3,), dtype="int64", fill_value=7)
    expected = {"a/b": torch.arange(6.0).reshape(2, 3), "a/zero": torch.full((3,), 7), "c": torch.tensor([True, False])}
    loaded = ckpt.load(tmp_path / "g")
    assert list(expected) == list(loaded)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())
    assert {"a/b": ("float32", (2, 3)), "a/zero": ("int64", (3,)), "c": ("bool", (2,))} == names_of(tmp_path / "g")
    assert ["c"] == list(ckpt.load(tmp_path / "g", ["c"]))
    (tmp_path / "g" / "text").mkdir()
    text = {"zarr_format": 3, "node_type": "array", "shape": [1], "data_type": "string"}
    (tmp_path / "g" / "text" / "zarr.json").write_text(json.dumps(text))
    with pytest.warns(CheckpointWarning, match="not loaded: text, which hold no numbers"):
        ckpt.load(tmp_path / "g")
    with pytest.raises(CheckpointError, match="read without options: leave out threads"):
        ckpt.load(tmp_path / "g", threads=2)


def test_an_array_of_tensorstore(tmp_path: Path) -> None:
    """A lone array, as TensorStore writes it, is one tensor; bfloat16 stays that."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / 'a'}/"}}
    ts.open(spec, create=True, shape=[3], dtype=ts.bfloat16).result().write(1.5).result()
    assert torch.equal(torch.full((3,), 1.5, dtype=torch.bfloat16), ckpt.load(tmp_path / "a")["array"])


def test_a_damaged_zarr_group(tmp_path: Path) -> None:
    """What TensorStore can't read is one message."""
    group = zarr.open_group(tmp_path / "g", mode="w")
    group.create_array("a", data=np.arange(6.0))
    (tmp_path / "g" / "a" / "c" / "0").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="can't read the arrays of"):
        ckpt.load(tmp_path / "g")


def test_files_with_anybodys_names(tmp_path: Path) -> None:
    """A name alone makes no checkpoint: the message says what lies there, what is known, and what can be loaded."""
    (tmp_path / "metadata.json").write_text('{"author": "somebody"}')
    (tmp_path / "zarr.json").write_text("{}")
    (tmp_path / ".metadata").write_text("text")
    (tmp_path / "state.pth").write_text("text")
    with pytest.raises(
        CheckpointError, match=r"it has .metadata, metadata.json, state.pth, zarr.json, and no format fits"
    ):
        ckpt.load(tmp_path)
    for number in (1, 2):
        torch.save({"w": torch.ones(2)}, tmp_path / f"epoch-{number}.pt")
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "model" / "model.safetensors")
    for command in ("load", "inspect"):
        code, text = printed(command, str(tmp_path))
        assert code == 2
        assert "of epoch-1.pt, epoch-2.pt, model." in text
        assert "Traceback" not in text
    assert ["w"] == list(ckpt.load(tmp_path / "epoch-1.pt"))


@pytest.mark.parametrize(
    "strategy", ["safetensors_file", "hdf5", "tensorstore_tuned", "tensorstore_basic", "zarr_python"]
)
def test_ours_without_a_manifest(tmp_path: Path, strategy: str) -> None:
    """What this package wrote is known as that when its manifest is gone: complex numbers and bfloat16 come back."""
    state = {"a": torch.ones(3, dtype=torch.complex128), "b": torch.ones(2).bfloat16()}
    ckpt.save(state, tmp_path / "c", strategy)
    (tmp_path / "c" / "checkpoint.json").unlink()
    assert strategy == ckpt.inspect(tmp_path / "c").strategy
    loaded = ckpt.load(tmp_path / "c")
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


def test_checksums_without_a_manifest(tmp_path: Path) -> None:
    """The checksums in a file of ours are compared though nobody asks for it, by its directory and by itself."""
    ckpt.save({"w": torch.ones(2000)}, tmp_path / "c")
    (tmp_path / "c" / "checkpoint.json").unlink()
    path = tmp_path / "c" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for each in (tmp_path / "c", path):
        with pytest.raises(CheckpointError, match="XXH3 differs"):
            ckpt.load(each)
        assert ["w"] == list(ckpt.load(each, verify=False))


def test_convert(tmp_path: Path) -> None:
    """A file of another program becomes a checkpoint of ours."""
    torch.save({"model": {"w": torch.ones(2)}, "step": 3}, tmp_path / "m.pt")
    ckpt.convert(tmp_path / "m.pt", tmp_path / "c")
    assert ckpt.load(tmp_path / "c")["step"] == 3


def test_somebody_elses_checkpoint_json(tmp_path: Path) -> None:
    """A file of our manifest's name that another program wrote leaves its directory what it is."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    for content in ('{"step": 3}', '{"format": 3}', "[]", '"text"', '{"format": "ckpt", "version": 9}'):
        (tmp_path / "checkpoint.json").write_text(content)
        assert ["w"] == list(ckpt.load(tmp_path))
