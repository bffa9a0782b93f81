"""torch_checkpointing, Meta's successor to DCP, in one process: the state is one item, written by `torch.save`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.background.async_saver import AsyncSaver, computed
from ckpt.errors import CheckpointError
from ckpt.formats import shard_files
from ckpt.process_group.group import ProcessGroup
from ckpt.single_process import SingleProcessStrategy
from ckpt.state.layout import Layout, TensorLayout, layout_of_state
from ckpt.state.sharding import RankShards
from ckpt.state.ties import owning
from ckpt.strategies.torch_save import TorchSave
from ckpt.strategy import Capabilities, Checksum, Description, Footprint

if TYPE_CHECKING:
    from ckpt.state.layout import State

_ITEM = "state"
_FILE = f"{_ITEM}_0.pt"  # the item's key and the rank

_STARTS_WITHIN_S = 600
"""The library's process imports PyTorch from a filesystem that may be slow; the library would give up after 30 s."""


@dataclass(frozen=True)
class TorchCheckpointing(SingleProcessStrategy):
    """`CheckpointManager` with a synchronous save.

    Direct I/O, its default, is off: `torch.save` writes at any offset, which ext4 and XFS refuse, so that a save fails.

    Attributes:
        mmap: load through an anonymous mapping, which 8 threads fill; False for one thread and buffers of the heap.
    """

    mmap: bool = True

    name: ClassVar[str] = "torch_checkpointing"

    async_ways: ClassVar[tuple[str, ...]] = ("library",)

    requires: ClassVar[tuple[str, ...]] = ("torch", "torch_checkpointing")

    extra: ClassVar[str] = "peers"

    @property
    def capabilities(self) -> Capabilities:
        """Checksums are torch.save's; the library reads whole items only."""
        return Capabilities(partial_load=False, loads_in_place=True, checksum=Checksum.WRITTEN)

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
        """Read the item."""
        if names is not None:
            raise CheckpointError(f"{path} can only be read as a whole: torch_checkpointing reads whole items")
        return self._load(path, None)

    def fill_rank(self, path: Path, targets: State) -> None:
        """Let the library read its file as a whole, and copy what is wanted into the targets."""
        loaded = self._load(path, targets)
        for name, target in targets.items():
            if loaded[name] is not target:
                raise CheckpointError(f"torch_checkpointing didn't load tensor {name!r} of {path} in place")

    def _load(self, path: Path, targets: State | None) -> State:
        """Read the item, after checking what its pickle names: the library would run anything."""
        file = path / _FILE
        if not file.exists():
            raise CheckpointError(f"{path} is no complete checkpoint: it has no {_FILE}")
        manager = self._manager()
        try:
            _check(file)
            if targets is not None:  # the library would broadcast and convert
                shard_files.check_targets(_layouts(file), targets, path)
            into = None if targets is None else dict(targets)
            state: State = manager.load(path, into={_ITEM: into})[_ITEM]
        except CheckpointError:
            raise
        except Exception as error:  # torch raises one of many kinds
            raise CheckpointError(f"can't load {file}: {type(error).__name__}: {error}") from error
        finally:
            manager.close()
        return state

    def async_saver(self, way: str) -> AsyncSaver:
        """Save with the asynchronous `CheckpointManager`."""
        return _TorchCheckpointingSaver(self) if way in self.async_ways else super().async_saver(way)

    def _manager(self) -> Any:
        from torch_checkpointing.config import SyncCheckpointSaverConfig

        return self.manager(SyncCheckpointSaverConfig(writer_config=_writer()))

    def manager(self, save: Any) -> Any:
        """Make the library's manager, with this configuration of saves."""
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.config import CheckpointLoaderConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        return CheckpointManager.Config(
            save=save,
            load=CheckpointLoaderConfig(use_mmap=self.mmap),
            storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
        ).build()


class _TorchCheckpointingSaver(AsyncSaver):
    """A thread copies the state while the loop goes on, up to the next update; a process of the library's writes it.

    The process ends with the first error, and the manager can't be used again then: the next save makes another one.
    """

    def __init__(self, strategy: TorchCheckpointing) -> None:
        self._strategy = strategy
        self._manager: Any = None
        self._running: tuple[Path, Future[Any]] | None = None

    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:  # noqa: ARG002  # no rank waits for another
        """Let the library start, which the first save waits for."""
        with _short_errors(directory):
            path = self._strategy.rank_path(directory, shards)
            if self._manager is None:
                self._manager = self._strategy.manager(_asynchronous())
            self._running = path, self._manager.save(str(path), {_ITEM: owning(computed(state))})

    def before_update(self) -> None:
        """Wait until the state is copied."""
        if self._manager is not None:
            with self._manager.lock():
                pass

    def finish(self) -> list[Path]:
        """Wait until the library's process has written the item."""
        assert self._running is not None  # the caller has started a save
        path, future = self._running
        self._running = None
        try:
            with _short_errors(path):
                future.result()
                (path / _FILE).stat()  # whatever the library reports
        except CheckpointError:
            self._end()
            raise
        return [path / _FILE]

    @property
    def helpers(self) -> list[int]:
        """The library's process, if it has started one."""
        context = getattr(self._process, "process", None)
        return [process.pid for process in context.processes if process.is_alive()] if context else []

    def close(self) -> None:
        """Wait for the save that is running; then end the library's thread and process."""
        self._end()

    @property
    def _process(self) -> Any:
        saver = getattr(self._manager, "_saver", None)  # the library has no other way to ask
        return getattr(saver, "_checkpoint_process", None)

    def _end(self) -> None:
        if self._manager is not None:
            with suppress(Exception):  # of a save that nobody waited for, or once more that of the last one
                self._manager.close()
            self._manager = None


def _writer() -> Any:
    from torch_checkpointing.checkpoint_writer import CheckpointWriterConfig

    return CheckpointWriterConfig(barrier_config=None, write_to_temp_dir=False)


def _asynchronous() -> Any:
    from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
    from torch_checkpointing.config import AsyncCheckpointSaverConfig

    process = CheckpointProcessConfig(subprocess_init_timeout_secs=_STARTS_WITHIN_S)
    return AsyncCheckpointSaverConfig(writer_config=_writer(), process_config=process)


@contextmanager
def _short_errors(directory: Path) -> Iterator[None]:
    """Convert the library's errors, of whose messages, tracebacks of its process, the last line says what happened."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # whatever its process raised
        lines = str(error).strip().splitlines() or [""]
        what = lines[-1] if len(lines) > 1 else f"{type(error).__name__}: {lines[0]}"
        raise CheckpointError(f"can't save to {directory}: {what}") from error


def _layouts(path: Path) -> dict[str, TensorLayout]:
    """Return the layouts of a file's tensors by name, without reading their data."""
    import torch

    mapped = torch.load(path, mmap=True, weights_only=True)
    return {layout.name: layout for layout in layout_of_state(mapped)}


def _check(path: Path) -> None:
    import torch

    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unsafe:
        raise CheckpointError(f"{path} names {', '.join(unsafe)}, which no checkpoint should")
