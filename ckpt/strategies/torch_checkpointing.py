"""torch_checkpointing, Meta's successor to DCP, in one process: the state is one item, written by `torch.save`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.errors import CheckpointError
from ckpt.single_process import SingleProcessStrategy
from ckpt.state.layout import Layout
from ckpt.state.ties import owning
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Capabilities, Checksum, Description, Footprint

if TYPE_CHECKING:
    from ckpt.state.layout import State

_ITEM = "state"
_FILE = f"{_ITEM}_0.pt"  # the item's key and the rank


@dataclass(frozen=True)
class TorchCheckpointing(SingleProcessStrategy):
    """`CheckpointManager` with a synchronous save.

    Direct I/O, its default, is off: `torch.save` writes at any offset, which ext4 and XFS refuse, so that a save fails.

    Attributes:
        mmap: load through an anonymous mapping, which 8 threads fill; False for one thread and buffers of the heap.
    """

    mmap: bool = True

    name: ClassVar[str] = "torch_checkpointing"

    requires: ClassVar[tuple[str, ...]] = ("torch", "torch_checkpointing")

    extra: ClassVar[str] = "peers"

    @property
    def capabilities(self) -> Capabilities:
        """Checksums are torch.save's; the library reads whole items only."""
        return Capabilities(partial_load=False, checksum=Checksum.WRITTEN)

    def describe(self) -> Description:
        """Describe torch.save's zip archive."""
        return Description(
            files="1",
            format="zip of raw tensors, and a pickle",
            chunks="none",
            compression="none",
            concurrency=f"one thread on save, {8 if self.mmap else 1} on load",
            dtype_on_disk="as in the state",
            order_of_writes="one call for the whole state",
            other_readers="torch.load",
            best_for="Training with PyTorch, asynchronously",
        )

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count as `torch_save` does."""
        return TorchSave().rank_footprint(layout)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the item in place: there are no other ranks to wait for."""
        manager = self._manager()
        try:
            manager.save(str(path), {_ITEM: owning(state)})
        finally:
            manager.close()
        return [path / _FILE]

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Read the item, after checking what its pickle names: the library would run anything."""
        file = path / _FILE
        if names is not None:
            raise CheckpointError(f"{path} can only be read as a whole: torch_checkpointing reads whole items")
        if not file.exists():
            raise CheckpointError(f"{path} is no complete checkpoint: it has no {_FILE}")
        manager = self._manager()
        try:
            _check(file)
            state: State = manager.load(path, into={_ITEM: None})[_ITEM]
        except CheckpointError:
            raise
        except Exception as error:  # torch raises one of many kinds
            raise CheckpointError(f"can't load {file}: {type(error).__name__}: {error}") from error
        finally:
            manager.close()
        return state

    def _manager(self) -> Any:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.checkpoint_writer import CheckpointWriterConfig
        from torch_checkpointing.config import CheckpointLoaderConfig, SyncCheckpointSaverConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        writer = CheckpointWriterConfig(barrier_config=None, write_to_temp_dir=False)
        return CheckpointManager.Config(
            save=SyncCheckpointSaverConfig(writer_config=writer),
            load=CheckpointLoaderConfig(use_mmap=self.mmap),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        ).build()


def _check(path: Path) -> None:
    import torch

    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unsafe:
        raise CheckpointError(f"{path} names {', '.join(unsafe)}, which no checkpoint should")
