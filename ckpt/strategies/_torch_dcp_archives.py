"""What strategies share that let torch.distributed.checkpoint (DCP) write its own format, by any storage layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.background.async_saver import AsyncSaver
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import dcp_errors, dcp_metadata, shard_files
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.process_group.group import ProcessGroup
from ckpt.state import dtypes
from ckpt.state.dtypes import require_plain
from ckpt.state.sharding import Partition, RankShards, Shard
from ckpt.strategies._torch_dcp_saver import DcpCall, TorchDcpSaver
from ckpt.strategy import Strategy, Wanted

if TYPE_CHECKING:
    from ckpt.state.layout import State, TensorLayout


@dataclass(frozen=True)
class TorchDcpArchives(Strategy):
    """Calls DCP's `save`, `async_save` and `load` with a storage writer and reader.

    Several ranks plan and commit together, over torch.distributed's default process group.
    """

    async_ways: ClassVar[tuple[str, ...]] = ("library-thread", "library-process")

    @abstractmethod
    def writer(self, directory: Path) -> Any:
        """Create DCP's storage writer for a directory."""

    @abstractmethod
    def reader(self, directory: Path) -> Any:
        """Create DCP's storage reader for a directory."""

    @contextmanager
    def new_memory(self, layouts: Mapping[str, TensorLayout]) -> Iterator[State]:
        """Allocate the tensors of a load, by name, as DCP's users do; the load runs in the context."""
        import torch

        yield {
            name: torch.empty(layout.shape, dtype=dtypes.torch_dtype(layout.dtype)) for name, layout in layouts.items()
        }

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:
        """Write this rank's files; when all ranks have, rank 0 writes the metadata."""
        from torch.distributed.checkpoint import state_dict_saver

        call = self.call_of(state, directory, shards, group)
        with wrapped(f"can't save to {directory}"), dcp_errors.converted(f"can't save to {directory}"):
            metadata = state_dict_saver.save(
                call.tensors, storage_writer=call.writer, planner=call.planner, no_dist=call.is_alone
            )
            return call.files(metadata)

    def async_saver(self, way: str) -> AsyncSaver:
        """Call `async_save`, with a thread or a process of DCP's."""
        if way not in self.async_ways:
            return super().async_saver(way)
        return TorchDcpSaver(self.call_of, self.label, in_process=way == "library-process")

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Allocate the tensors, and let DCP read the wanted rows into them."""
        if stored is None or stored.is_single_read(wanted, group.size):
            return self._read_whole_tensors(directory, wanted)
        shards = stored.shards(wanted)
        layouts = {shard.whole.name: shard.layout for shard in shards if shard.whole.same_as is None}
        with self.new_memory(layouts) as state:
            self._fill_shards(directory, state, shards, stored, group)
        return {shard.whole.name: state[shard.whole.owner] for shard in shards}

    def fill(self, directory: Path, into: State, wanted: Wanted, stored: Partition | None, group: ProcessGroup) -> None:
        """Let DCP read the wanted rows into the targets."""
        if stored is None or stored.is_single_read(wanted, group.size):
            self._fill_whole_tensors(directory, into)
            return
        shards = stored.shards(wanted)
        layouts = {shard.whole.name: shard.layout for shard in shards if shard.whole.same_as is None}
        shard_files.check_targets(layouts, into, directory)
        self._fill_shards(directory, into, shards, stored, group)

    def call_of(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> DcpCall:
        """What to give to DCP for a rank's shards."""
        if shards.partition.count > 1:
            return self._call_for_shards(state, directory, shards, group)
        for name, tensor in state.items():  # DCP would write this rank's part of a DTensor
            require_plain(tensor, f"tensor {name!r}")
        return self._call_for_all(state, directory)

    def opened(self, directory: Path) -> tuple[Any, dict[str, Any], dict[str, TensorInfo]]:
        """Open a reader; returns it, the tensors' metadata by key, and the tensors of safetensors files by name."""
        if not (directory / dcp_metadata.FILE).exists():
            raise CheckpointError(f"{directory} is no complete checkpoint: it has no {dcp_metadata.FILE}")
        metadata = dcp_metadata.read(directory)
        reader = self.reader(directory)
        reader.read_metadata = lambda **_: metadata  # DCP's own would unpickle it
        return reader, dcp_metadata.tensors_of(metadata), {}

    def _call_for_all(self, state: State, directory: Path) -> DcpCall:
        def files(metadata: Any) -> list[Path]:
            if len(metadata.storage_data) != len(state):
                raise dcp_errors.of_a_thread(directory)
            names = {dcp_metadata.FILE, *(entry.relative_path for entry in metadata.storage_data.values())}
            names |= {path.name for path in directory.glob("__0_*")}  # a thread without tensors may have a file, too
            return [directory / name for name in names]

        return DcpCall(state, self.writer(directory), None, files, is_alone=True)

    def _call_for_shards(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> DcpCall:
        from ckpt.formats import dcp_planners

        owners = tuple(shard for shard in shards.owned if shard.whole.same_as is None)

        def files(metadata: Any) -> list[Path]:
            if not all(dcp_planners.index_of(shard) in metadata.storage_data for shard in owners):
                raise dcp_errors.of_a_thread(directory)
            written = list(directory.glob(f"__{group.rank}_*"))
            return written if group.rank else [*written, directory / dcp_metadata.FILE]

        tensors = {shard.whole.name: state[shard.whole.name] for shard in owners}
        return DcpCall(tensors, self.writer(directory), dcp_planners.SavePlanner(owners), files, is_alone=False)

    def _fill_shards(
        self, directory: Path, state: State, shards: Sequence[Shard], stored: Partition, group: ProcessGroup
    ) -> None:
        """Let DCP read the rows of several ranks' shards into tensors of their shapes."""
        from torch.distributed.checkpoint import state_dict_loader

        from ckpt.formats import dcp_planners

        if not self.capabilities.can_reshard:
            self.refuse_resharding(stored, group)
        owners = tuple(shard for shard in shards if shard.whole.same_as is None)
        with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
            reader, _, _ = self.opened(directory)
            planner = dcp_planners.LoadPlanner(owners)
            state_dict_loader.load(dict(state), storage_reader=reader, planner=planner, no_dist=group.size == 1)

    def _fill_whole_tensors(self, directory: Path, targets: State) -> None:
        import torch
        from torch.distributed.checkpoint import state_dict_loader

        with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
            reader, known, packed = self.opened(directory)
            layouts = {name: info.layout for name, info in packed.items()} or dcp_metadata.layouts(known)
            shard_files.check_targets(layouts, targets, directory)
            tensors = {}
            for name, target in targets.items():
                info = packed.get(name)
                is_pair = info is not None and info.is_pair
                tensors[info.key if info else name] = torch.view_as_real(target) if is_pair else target
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=True)

    def _read_whole_tensors(self, directory: Path, names: Collection[str] | None) -> State:
        from torch.distributed.checkpoint import state_dict_loader

        with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
            reader, known, packed = self.opened(directory)
            key_of = {name: info.key for name, info in packed.items()} or {key: key for key in known}
            chosen = shard_files.select(key_of, names, directory)
            layouts = dcp_metadata.layouts({key_of[name]: known[key_of[name]] for name in chosen})
            with self.new_memory(layouts) as tensors:
                state_dict_loader.load(dict(tensors), storage_reader=reader, no_dist=True)
            tensors |= {info.key: info.value(tensors[info.key]) for info in packed.values() if info.key in tensors}
            return {name: tensors[key_of[name]] for name in chosen}
