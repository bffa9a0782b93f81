"""A strategy for tests that takes no notice of an error of fsync, and whose files show no damage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ckpt.strategies.torch_save import TorchSave

if TYPE_CHECKING:
    from ckpt.state.layout import State

_DATA = "data"


@dataclass(frozen=True)
class Careless(TorchSave):
    """The tensors' bytes in one file, and what they are in the file of `torch_save`."""

    name: ClassVar[str] = "careless"

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write both files, and sync one."""
        import torch

        data = path.with_name(_DATA)
        with data.open("wb") as file:
            for tensor in state.values():
                file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            file.flush()
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
        return [data, *super().write_rank({name: torch.zeros_like(tensor) for name, tensor in state.items()}, path)]

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Read both files."""
        import torch

        state = super().read_rank(path, names)
        with path.with_name(_DATA).open("rb") as file:
            for tensor in state.values():
                size_bytes = tensor.numel() * tensor.element_size()
                tensor.view(torch.uint8).flatten().copy_(
                    torch.frombuffer(bytearray(file.read(size_bytes)), dtype=torch.uint8)
                )
        return state
