"""`torch.save` of the whole state dict: one call, one file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ckpt.errors import CheckpointError
from ckpt.layout import Layout, state_bytes
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    from ckpt.state import State

_FILE = "state.pth"


@dataclass(frozen=True)
class TorchSave(Strategy):
    """PyTorch's own format: a zip archive, stored, with a pickle that names the tensors."""

    marker: ClassVar[str] = _FILE

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1",
            format="zip of raw tensors, and a pickle",
            chunks="none",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state",
            order_of_writes="one call for the whole state",
            synced="no",
            atomic="no",
            checksum="written, not verified",
            partial_load="by tensor",
            other_readers="torch.load",
            best_for="Speed, simplicity",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """One file: the bytes of the state, and up to 64 of padding and 512 of records for each tensor."""
        names = sum(4 * len(tensor.name) for tensor in layout)
        return Footprint(1, state_bytes(layout) + 640 * len(layout) + names + 8192)

    def save(self, state: State, directory: Path) -> None:
        """Write everything in one call."""
        import torch

        torch.save(state, directory / _FILE)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read everything in one call, a part through a mapping; only tensors and plain containers are unpickled."""
        import torch

        path = directory / _FILE
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=names is not None)
        except FileNotFoundError:
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {_FILE}") from None
        except Exception as error:  # torch raises one of many kinds, not all with a text
            raise CheckpointError(f"can't load {path}: {type(error).__name__}: {error}") from error
        if names is None:
            return state
        return {name: state[name].clone() for name in select(state, names, directory)}
