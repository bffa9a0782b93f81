"""A strategy of known cost, or of known dishonesty, for `python -m jobs selftest`; it isn't listed among the others."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ckpt.state.layout import Layout
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Facts, Footprint, Strategy

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class Selftest(Strategy):
    """`torch.save` and `torch.load`, made slower, or made to lie.

    Attributes:
        behaviour: `honest`; `wrong_data` flips a bit of what it loads; `lazy` maps the file instead of reading it;
            `unsynced` says that its files are on storage when they aren't.
        sleep_s: seconds that each save and each load sleep besides.
        bytes_per_s: sleep as long as the state's bytes take at that rate; 0 for not at all.
    """

    behaviour: Literal["honest", "wrong_data", "lazy", "unsynced"] = "honest"
    sleep_s: float = 0
    bytes_per_s: float = 0

    requires: ClassVar[tuple[str, ...]] = ("torch",)

    @property
    def facts(self) -> Facts:
        """Those of what it imitates."""
        return TorchSave().facts

    @property
    def syncs_files(self) -> bool:
        """False, or the lie."""
        return self.behaviour == "unsynced"

    def footprint(self, layout: Layout) -> Footprint:
        """That of what it imitates."""
        return TorchSave().footprint(layout)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Save, and take the time that is asked for."""
        self._take_time(state)
        return TorchSave().save(state, directory)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Load, honestly or not, and take the time that is asked for."""
        import torch

        if self.behaviour == "lazy":
            (file,) = directory.iterdir()
            state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            return state
        state = TorchSave().load(directory, names)
        self._take_time(state)
        if self.behaviour == "wrong_data":
            first = next(iter(state.values()))
            first.view(torch.uint8).view(-1)[0] ^= 1
        return state

    def _take_time(self, state: State) -> None:
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        time.sleep(self.sleep_s + (size_bytes / self.bytes_per_s if self.bytes_per_s else 0))
