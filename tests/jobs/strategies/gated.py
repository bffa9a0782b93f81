"""A strategy for tests that stops where it is told to: `torch_save` with a gate."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ckpt.strategies.torch_save import TorchSave

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class Gated(TorchSave):
    """`torch_save`, but the save after `$GATE_AFTER` others writes half a file, and waits for ever."""

    name: ClassVar[str] = "gated"
    saves: ClassVar[list[Path]] = []

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the file, or wait."""
        if str(len(self.saves)) == os.environ.get("GATE_AFTER"):
            path.with_name("half a file").write_bytes(b"half")
            Path(os.environ["GATE_REACHED"]).touch()
            while True:
                time.sleep(0.01)
        self.saves.append(path)
        return super().write_rank(state, path)
