"""What `torch_dcp` keeps DCP from doing."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
import torch

from ckpt.errors import CheckpointError
from ckpt.strategies.torch_dcp import TorchDcp


class Trap:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_metadata_is_never_executed(tmp_path: Path) -> None:
    """DCP would run whatever its `.metadata` says; a load here refuses it, and nothing has run."""
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=r"it names pathlib.*which no checkpoint should"):
        TorchDcp().load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_metadata_that_points_elsewhere(tmp_path: Path) -> None:
    """Metadata can't make us read a file outside the directory."""
    TorchDcp().save({"a": torch.ones(3)}, tmp_path)
    metadata = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../_0.distcp"))
    with pytest.raises(CheckpointError, match="names a file outside its directory"):
        TorchDcp().load(tmp_path)


def test_an_interrupt_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP wraps what it catches, Ctrl-C as well: that goes on as what it was."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        TorchDcp().save({"a": torch.ones(3)}, tmp_path)


def test_a_thread_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP loses the error of a thread, and commits a checkpoint without its tensors; a save here says so."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # stderr, that is
    save = torch.save

    def save_in_main_thread(*arguments: object, **options: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, "No space left on device")
        save(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", save_in_main_thread)
    state = {str(number): torch.ones(1000) for number in range(100)}
    with pytest.raises(CheckpointError, match="a thread of DCP failed"):
        TorchDcp(thread_count=4).save(state, tmp_path)
