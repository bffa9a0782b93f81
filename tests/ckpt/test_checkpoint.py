"""`ckpt.save`, `ckpt.load`, `ckpt.inspect`, `ckpt.convert`: what a training loop relies on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt import checkpoint, manifest
from ckpt.disk import listing
from ckpt.errors import CheckpointError
from ckpt.registry import names
from support.strategies import usable
from support.training_states import some_state, step_of


@pytest.mark.parametrize("strategy", names())
def test_every_strategy(strategy: str, final: Path) -> None:
    """A nested state comes back whole, tied weights tied, by whichever strategy; the load finds out by which; a part
    comes back by name.
    """
    chosen = usable(strategy)
    ckpt.save(some_state(7), final, strategy)
    loaded = ckpt.load(final)
    assert step_of(loaded) == 7
    assert loaded["model"]["embed"] is loaded["model"]["head"]
    assert ckpt.inspect(final).strategy == strategy
    if chosen.capabilities.partial_load:
        part = ckpt.load(final, names=["model.head"])
        assert ["model.head"] == list(part)
        assert torch.equal(part["model.head"], loaded["model"]["head"])


def test_replacing(final: Path) -> None:
    """A second save of a name replaces the first, also by another strategy, and leaves nothing beside it."""
    ckpt.save(some_state(1), final)
    ckpt.save(some_state(2), final, "torch_save")
    assert step_of(ckpt.load(final)) == 2
    assert [final] == list(final.parent.iterdir())


def test_missing_directories_are_made(tmp_path: Path) -> None:
    """The directories above a checkpoint need not exist; a name may be relative to where one is."""
    ckpt.save(some_state(1), tmp_path / "a" / "b" / "c")
    assert step_of(ckpt.load(tmp_path / "a" / "b" / "c")) == 1


@pytest.mark.parametrize("what", ["a file", "a directory", "another's file inside", "no json"])
def test_nothing_else_is_replaced(what: str, final: Path) -> None:
    """What is no checkpoint of ours, or has files in it that are not ours, is left as it is."""
    ckpt.save(some_state(1), final)
    if what == "another's file inside":
        (final / "config.json").write_text("{}")
    elif what == "no json":
        (final / "checkpoint.json").write_text('{"format": ')
    else:
        shutil.rmtree(final)
        (final.mkdir if what == "a directory" else final.touch)()
    before = {str(path): path.lstat().st_mtime_ns for path in final.parent.rglob("*")}
    with pytest.raises(CheckpointError, match=str(final)):
        ckpt.save(some_state(2), final)
    assert before == {str(path): path.lstat().st_mtime_ns for path in final.parent.rglob("*")}


@pytest.mark.parametrize("name", ["tensorstore_tuned", "torch_dcp", "hdf5"])
def test_a_file_that_is_gone_is_not_published(name: str, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published is what was written: a file that somebody removed meanwhile fails the save."""
    ckpt.save(some_state(1), final, name)
    files_of = manifest.files_of

    def without_one(directory: Path) -> dict[str, int]:
        if directory.name.startswith(".partial-"):
            next(Path(entry.path) for entry in listing.files_below(directory)).unlink()
        return files_of(directory)

    monkeypatch.setattr(manifest, "files_of", without_one)
    with pytest.raises(CheckpointError, match="while the checkpoint was being written, by another process"):
        ckpt.save(some_state(2), final, name)
    assert step_of(ckpt.load(final)) == 1
    assert [final] == list(final.parent.iterdir())


def test_a_link_is_followed(final: Path) -> None:
    """Saved to a link that leads to a checkpoint, the checkpoint is replaced, and the link stays; so does one that
    leads nowhere yet.
    """
    target = final.with_name("step-1")
    final.symlink_to("step-1")
    for step in (1, 2):
        ckpt.save(some_state(step), final)
        assert final.is_symlink()
        assert step_of(ckpt.load(target)) == step_of(ckpt.load(final)) == step
    assert {final, target} == set(final.parent.iterdir())


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory, wherever a path is given; of a user that there is not, an error names it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    ckpt.save(some_state(1), "~/run/one")
    ckpt.convert("~/run/one", "~/run/two", "torch_save")
    assert step_of(ckpt.load("~/run/two")) == 1
    assert ckpt.inspect("~/run/one").strategy == "safetensors_tuned"
    assert [tmp_path / "home"] == list(tmp_path.iterdir())
    for use in (ckpt.load, ckpt.inspect, lambda path: ckpt.save({}, path)):
        with pytest.raises(CheckpointError, match="~nosuchuser/run"):
            use("~nosuchuser/run")


@pytest.mark.parametrize("name", ["n" * 240, "ü" * 120, "n" * 255], ids=["ASCII", "two bytes each", "the most"])
def test_long_names(name: str, final: Path) -> None:
    """Any name that a filesystem takes is one for a checkpoint."""
    for step in (1, 2):
        ckpt.save(some_state(step), final.with_name(name))
    assert step_of(ckpt.load(final.with_name(name))) == 2
    assert [name] == [path.name for path in final.parent.iterdir()]


@pytest.mark.every_filesystem
def test_a_training_loop(final: Path) -> None:
    """A name may be saved again and again, and has the newest checkpoint, whether it becomes a link or not."""
    for step in (1, 2, 3):
        ckpt.save(some_state(step), final)
        assert step_of(ckpt.load(final)) == step
    version = [final.readlink().name] if final.is_symlink() else []
    assert sorted([final.name, *version]) == sorted(path.name for path in final.parent.iterdir())


@pytest.mark.usefixtures("without_exchange")
def test_a_filesystem_without_exchange_and_links(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a checkpoint can't be replaced in any safe way, that is refused before anything is written."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    ckpt.save(some_state(1), final)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(CheckpointError, match="step-1000"):
        ckpt.save(some_state(2), final)
    assert step_of(ckpt.load(final)) == 1
    assert [final] == list(final.parent.iterdir())


def test_a_full_disk(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails says why in one message, leaves the old checkpoint, and nothing of itself."""
    ckpt.save(some_state(1), final)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match="No space left"):
        ckpt.save(some_state(2), final)
    assert step_of(ckpt.load(final)) == 1
    assert [final] == list(final.parent.iterdir())


class TestOthers:
    """Checkpoints that other programs wrote, and other programs that read ours."""

    @pytest.fixture
    def model(self, write_config: Callable[..., str], tmp_path: Path) -> Any:
        """A tiny Llama, saved by transformers in several files."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = json.loads(Path(write_config()).read_text())
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float16)
        model.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
        assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
        return model

    def test_a_hugging_face_directory_is_loaded(self, model: Any, tmp_path: Path) -> None:
        """The load finds the strategy from what lies there, and `inspect` reads the headers."""
        expected = model.state_dict()
        loaded = ckpt.load(tmp_path / "theirs")
        assert set(expected) == set(loaded)
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())
        tensors = ckpt.inspect(tmp_path / "theirs").tensors
        assert tensors is not None
        assert set(expected) == {each.name for each in tensors}

    @pytest.mark.parametrize("shard_mib", [0, 1])
    def test_transformers_opens_ours(
        self, shard_mib: int, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`from_pretrained` opens a directory that we wrote, in one file or several, beside a config.json."""
        from transformers import AutoModelForCausalLM

        from ckpt.formats import safetensors_plan

        monkeypatch.setattr(safetensors_plan, "MIB", 4000)
        ckpt.save(model.state_dict(), tmp_path / "ours", shard_mib=shard_mib)
        assert (len(list((tmp_path / "ours").glob("*.safetensors"))) > 1) == bool(shard_mib)
        shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "ours")
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float16)
        assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in model.state_dict().items())

    def test_a_plain_torch_file_is_loaded(self, tmp_path: Path) -> None:
        """Without a `checkpoint.json`, a file of the strategy's own name is enough."""
        torch.save({"w": torch.ones(3)}, tmp_path / "state.pth")
        assert ckpt.inspect(tmp_path).strategy == "torch_save"
        assert torch.equal(torch.ones(3), ckpt.load(tmp_path)["w"])


def test_converting(final: Path, tmp_path: Path) -> None:
    """Another strategy, the same state, plain values too; and never into itself."""
    ckpt.save(some_state(3), final)
    ckpt.convert(final, tmp_path / "zarr", "tensorstore_tuned", compression="zstd")
    assert step_of(ckpt.load(tmp_path / "zarr")) == 3
    assert ckpt.inspect(tmp_path / "zarr").options["compression"] == "zstd"
    with pytest.raises(CheckpointError, match="into itself"):
        ckpt.convert(final, final.parent / ".." / "run" / "latest")


def test_inspecting(final: Path) -> None:
    """Every tensor with its shape, tied ones with the one that they share, and the number of plain values."""
    ckpt.save(some_state(3), final)
    found = ckpt.inspect(final)
    assert found.tensors is not None
    assert [("model.embed", (70, 3), None), ("model.bias", (5,), None), ("model.head", (70, 3), "model.embed")] == [
        (each.name, each.shape, each.same_as) for each in found.tensors
    ]
    assert (3, ()) == (found.plain_values, found.problems)
    assert found.files == listing.inventory(final)


def test_default_strategy() -> None:
    """The strategy that needs no naming is the fastest one that everybody can read."""
    assert checkpoint.DEFAULT == "safetensors_tuned"
