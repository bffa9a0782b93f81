"""`torch.save` of the whole state dict: one call, one file; with several ranks, of each one's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.errors import CheckpointError
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state.layout import Layout, state_bytes
from ckpt.state.sharding import Partition, RankShards
from ckpt.state.ties import identity, owning
from ckpt.strategy import Facts, Footprint, Strategy

if TYPE_CHECKING:
    from ckpt.state.layout import State

_FILE = "state.pth"


@dataclass(frozen=True)
class TorchSave(Strategy):
    """PyTorch's own format: a zip archive, stored, with a pickle that names the tensors.

    Attributes:
        crc: whether the archive's CRC-32s are computed; PyTorch never looks at them.
        mmap: load through a mapping of the file, and copy every tensor out of it.
        weights_only: unpickle only tensors and plain containers. False runs whatever the file says: only for a study,
            which loads what it has just written itself.
    """

    crc: bool = True
    mmap: bool = False
    weights_only: bool = True

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
            checksum="written, not verified" if self.crc else "none",
            partial_load="by tensor",
            other_readers="torch.load",
            best_for="Speed, simplicity",
            ranks="a file for each rank",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """One file: the bytes of the state, and up to 64 of padding and 512 of records for each tensor."""
        names = sum(4 * len(tensor.name) for tensor in layout)
        return Footprint(1, state_bytes(layout) + 640 * len(layout) + names + 8192)

    def save(self, state: State, directory: Path) -> list[Path]:
        """Write everything in one call."""
        self._write(state, directory / _FILE)
        return [directory / _FILE]

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read everything in one call; a part is copied out of a mapping."""
        return self._read(directory / _FILE, names)

    def load_file(self, path: Path) -> State:
        """Read a file of any name in one call."""
        return self._read(path)

    def save_together(self, state: State, directory: Path, part: RankShards, ranks: ProcessGroup) -> list[Path]:  # noqa: ARG002  # nobody is waited for
        """Write a file of its own."""
        path = directory / _file(part.rank, part.partition.count)
        self._write(state, path)
        return [path]

    def load_together(self, directory: Path, part: RankShards, saved: Partition, ranks: ProcessGroup) -> State:  # noqa: ARG002  # as above
        """Read its own file; of a replicated state, all files."""
        if saved.sharding != "replicated":
            self.refuse_resharding(part, saved)
            return self._read(directory / _file(part.rank, saved.count))
        found: State = {}
        for rank in range(saved.count):
            found |= self._read(directory / _file(rank, saved.count))
        return {each.whole.name: found[each.whole.name] for each in part.held}

    def _write(self, state: State, path: Path) -> None:
        import torch

        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(self.crc)
        try:
            torch.save(owning(state), path)
        finally:
            torch.serialization.set_crc32_options(before)

    def _read(self, path: Path, names: Collection[str] | None = None) -> State:
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
        owned: dict[tuple[object, ...], torch.Tensor] = {}  # tied tensors are copied once
        part: State = {}
        for name in select(state, names, path.parent):
            tensor = state[name]
            if identity(tensor) not in owned:
                owned[identity(tensor)] = tensor.clone()
            part[name] = owned[identity(tensor)]
        return part


def _file(rank: int, size: int) -> str:
    return _FILE if size == 1 else f"state-{rank:05d}-of-{size:05d}.pth"
