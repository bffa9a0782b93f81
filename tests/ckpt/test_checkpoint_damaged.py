"""Checkpoints that are incomplete, mixed or damaged, and what is none: the load says so in one message."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckpt
from ckpt import manifest
from ckpt.disk import commit, listing
from ckpt.errors import CheckpointError
from ckpt.strategies.torch_save import TorchSave
from support.training_states import some_state


def change_manifest(directory: Path, **changes: Any) -> None:
    """Change what `checkpoint.json` says, with a checksum that agrees, as somebody would who means harm."""
    path = directory / "checkpoint.json"
    path.write_text(json.dumps(manifest.sealed(json.loads(path.read_text()) | changes)))


@pytest.mark.parametrize("strategy", ["safetensors_tuned", "tensorstore_tuned", "torch_save"])
def test_incomplete(strategy: str, final: Path, tmp_path: Path) -> None:
    """Whichever file is missing or cut, the load says which, with what was expected, and so does `inspect`."""
    ckpt.save(some_state(1), final, strategy)

    def damaged() -> Iterator[tuple[Path, str]]:
        for entry in list(listing.files_below(final)):
            name = str(Path(entry.path).relative_to(final))
            for size_bytes in (None, entry.stat().st_size - 1):
                copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
                shutil.copytree(final, copy)
                if size_bytes is None:
                    (copy / name).unlink()
                else:
                    os.truncate(copy / name, size_bytes)
                yield copy, name

    for copy, name in damaged():
        if name == "checkpoint.json":
            continue
        with pytest.raises(CheckpointError, match=f"incomplete: {name}"):
            ckpt.load(copy)
        assert name in ckpt.inspect(copy).problems[0]


def test_what_is_no_checkpoint(tmp_path: Path, final: Path) -> None:
    """A missing directory, one without a checkpoint, and what an unfinished save left are refused, each by name."""
    for path, told in ((tmp_path / "nothing", "no such directory"), (tmp_path, "not a checkpoint in a known format")):
        with pytest.raises(CheckpointError, match=told):
            ckpt.load(path)
    with commit.begin(final) as staging:
        for path in (staging.path, final):
            with pytest.raises(CheckpointError, match="unfinished save"):
                ckpt.load(path)


def test_mixed_checkpoints(tmp_path: Path) -> None:
    """A file of another checkpoint, of the same size, that holds other tensors is noticed."""
    ckpt.save({"w": torch.zeros(4)}, tmp_path / "one", "torch_save")
    ckpt.save({"w": torch.zeros(2, 2)}, tmp_path / "two", "torch_save")
    content = (tmp_path / "two" / "state.pth").read_bytes()
    size_bytes = (tmp_path / "one" / "state.pth").stat().st_size
    if len(content) != size_bytes:
        change_manifest(tmp_path / "one", files={"state.pth": len(content)})
    (tmp_path / "one" / "state.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'w' is float32 \[2, 2\], expected float32 \[4\]"):
        ckpt.load(tmp_path / "one", verify=False)
    with pytest.raises(CheckpointError, match="damaged: tensor 'w'"):
        ckpt.load(tmp_path / "one")


def test_options_are_the_callers(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file says about options is not obeyed: it could ask to unpickle anything."""
    ckpt.save(some_state(1), final, "torch_save")
    change_manifest(final, options={"weights_only": False})
    seen = []
    load = TorchSave.load
    monkeypatch.setattr(TorchSave, "load", lambda self, *rest: (seen.append(self), load(self, *rest))[1])
    ckpt.load(final)
    assert [TorchSave()] == seen


@pytest.mark.parametrize(
    "change",
    [{"strategy": "../../evil"}, {"version": 3}, {"version": None}, {"tensors": 1}, {"tensors": {}}, {"rest": {"x": 1}},
     {"rest": None, "tied": {"x": "y"}}, {"files": {"state.pth": "many"}}],
    ids=str,
)  # fmt: skip
def test_damaged_manifests(change: dict[str, Any], final: Path) -> None:
    """Whatever `checkpoint.json` says, and be its checksum right, the load ends with one message."""
    ckpt.save(some_state(1), final, "torch_save")
    change_manifest(final, **change)
    with pytest.raises(CheckpointError):
        ckpt.load(final)
