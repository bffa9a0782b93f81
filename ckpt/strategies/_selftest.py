"""A strategy of known cost, or with a known fault, for `python -m jobs selftest`; it isn't listed among the others."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ckpt.single_process import SingleProcessStrategy
from ckpt.state.layout import Layout
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Capabilities, Description, Footprint, Syncs

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class Selftest(SingleProcessStrategy):
    """`torch.save` and `torch.load`, slowed down, or with a fault that a measurement must detect.

    Attributes:
        behaviour: `honest`; `wrong_data` flips a bit of what it loads; `lazy` maps the file instead of reading it;
            `unsynced` declares that its files are on storage when they aren't.
        sleep_s: seconds that every save and every load sleeps in addition.
        bytes_per_s: sleep as long as the state's bytes take at that rate; 0 for not at all.
    """

    behaviour: Literal["honest", "wrong_data", "lazy", "unsynced"] = "honest"
    sleep_s: float = 0
    bytes_per_s: float = 0

    name: ClassVar[str] = "_selftest"

    @property
    def capabilities(self) -> Capabilities:
        """Those of `torch_save`, except for the false claim to sync."""
        syncs = Syncs.ALL_FILES if self.behaviour == "unsynced" else Syncs.NOTHING
        return replace(TorchSave().capabilities, syncs=syncs)

    def describe(self) -> Description:
        """Describe `torch_save`."""
        return TorchSave().describe()

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count as `torch_save` does."""
        return TorchSave().rank_footprint(layout)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Sleep as long as the options demand, and save."""
        self._sleep(state)
        return TorchSave().write_rank(state, path / TorchSave.rank_file)

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Load, with the fault if there is one, and sleep as long as the options demand."""
        import torch

        if self.behaviour == "lazy":
            (file,) = path.iterdir()
            state: State = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            return state
        state = TorchSave().read_rank(path / TorchSave.rank_file, names)
        self._sleep(state)
        if self.behaviour == "wrong_data":
            first = next(iter(state.values()))
            first.view(torch.uint8).view(-1)[0] ^= 1
        return state

    def _sleep(self, state: State) -> None:
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        time.sleep(self.sleep_s + (size_bytes / self.bytes_per_s if self.bytes_per_s else 0))
