"""`torch.save` of the whole state dict: one call, one file; one file per rank where several write."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.single_process import SingleProcessStrategy
from ckpt.state.layout import Layout, state_bytes
from ckpt.state.ties import identity, owning
from ckpt.strategy import Capabilities, Checksum, Description, Footprint

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class TorchSave(SingleProcessStrategy):
    """PyTorch's own format: an uncompressed zip archive, with a pickle that names the tensors.

    Attributes:
        crc: compute the archive's CRC-32s, which PyTorch never compares.
        mmap: load through a mapping of the file, and copy every tensor out of it.
        weights_only: unpickle only tensors and plain containers. False runs whatever code the file names: only for a
            study, which loads what it has just written itself.
    """

    crc: bool = True
    mmap: bool = False
    weights_only: bool = True

    name: ClassVar[str] = "torch_save"

    rank_file: ClassVar[str] = "state.pth"

    @property
    def capabilities(self) -> Capabilities:
        """PyTorch computes checksums and ignores them."""
        return Capabilities(checksum=Checksum.WRITTEN if self.crc else Checksum.NONE)

    def describe(self) -> Description:
        """Describe the zip archive."""
        return Description(
            files="1",
            format="zip of raw tensors, and a pickle",
            chunks="none",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state",
            order_of_writes="one call for the whole state",
            other_readers="torch.load",
            best_for="Speed, simplicity",
            ranks="a file for each rank",
        )

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count one file: the bytes of the state, and up to 64 of padding and 512 of records per tensor."""
        names = sum(4 * len(tensor.name) for tensor in layout)
        return Footprint(1, state_bytes(layout) + 640 * len(layout) + names + 8192)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write everything in one call."""
        import torch

        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(self.crc)
        try:
            torch.save(owning(state), path)
        finally:
            torch.serialization.set_crc32_options(before)
        return [path]

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Read everything in one call; a part is copied out of a mapping."""
        import torch

        mmap = self.mmap or names is not None
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=self.weights_only, mmap=mmap)
        except FileNotFoundError:
            raise CheckpointError(f"{path.parent} is no complete checkpoint: it has no {path.name}") from None
        except Exception as error:  # torch raises one of many kinds, not all with a text
            raise CheckpointError(f"can't load {path}: {type(error).__name__}: {error}") from error
        if not mmap:
            return state
        copies: dict[tuple[object, ...], torch.Tensor] = {}  # tied tensors are copied once
        part: State = {}
        for name in select(state, names, path.parent):
            tensor = state[name]
            if identity(tensor) not in copies:
                copies[identity(tensor)] = tensor.clone()
            part[name] = copies[identity(tensor)]
        return part
