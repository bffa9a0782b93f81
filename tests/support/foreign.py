"""What is listed of checkpoints that other programs wrote."""

from __future__ import annotations

from pathlib import Path

import ckpt


def names_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What `inspect` lists."""
    found = ckpt.inspect(path).tensors
    assert found is not None
    return {each.name: (each.dtype, each.shape) for each in found}
