"""What `torch_checkpointing` keeps its library from doing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ckpt.errors import CheckpointError
from ckpt.strategies.torch_checkpointing import TorchCheckpointing


class Trap:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_pickle_is_never_executed(tmp_path: Path, mmap: bool) -> None:
    """The library would run whatever its file says; a load here refuses it, and nothing has run."""
    if not os.environ.get("CKPT_REQUIRE_ALL"):
        pytest.importorskip("torch_checkpointing", reason="torch_checkpointing isn't installed: pip install '.[peers]'")
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "state_0.pt")
    with pytest.raises(CheckpointError, match=r"names .*, which no checkpoint should"):
        TorchCheckpointing(mmap=mmap).load(tmp_path)
    assert not (tmp_path / "sprung").exists()
