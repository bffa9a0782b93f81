"""PyTorch's distributed checkpoint (DCP): its file system writer, or, in one process, its safetensors writer."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.background.async_saver import AsyncSaver
from ckpt.disk import durable
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import dcp_errors, dcp_metadata, safetensors_files
from ckpt.formats.safetensors_files import INDEX
from ckpt.formats.safetensors_metadata import TensorInfo, names_bytes, to_texts
from ckpt.formats.safetensors_packing import pack
from ckpt.formats.safetensors_plan import plan_files
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state.dtypes import require_plain
from ckpt.state.layout import Layout, TensorLayout, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies._torch_dcp_saver import DcpCall, TorchDcpSaver
from ckpt.strategy import Capabilities, Checksum, Description, Footprint, Strategy, Syncs, Wanted, sum_over_ranks

if TYPE_CHECKING:
    from ckpt.state.layout import State

_METADATA = dcp_metadata.FILE


@dataclass(frozen=True)
class TorchDcp(Strategy):
    """`torch.distributed.checkpoint.save` and `load`.

    Several ranks plan and commit together, over torch.distributed's default process group.

    Attributes:
        thread_count: threads that write; with one file per rank, every thread writes a file.
        single_file_per_rank: False for a file per tensor.
        serialization: `torch_save` makes every tensor a `torch.save` archive; `safetensors` is DCP's Hugging Face
            writer, whose reader uses as many threads. It writes no index if several ranks save: it is for one.
    """

    thread_count: Annotated[int, Field(ge=1)] = 1
    single_file_per_rank: bool = True
    serialization: Literal["torch_save", "safetensors"] = "torch_save"

    name: ClassVar[str] = "torch_dcp"

    async_ways: ClassVar[tuple[str, ...]] = ("library-thread", "library-process")

    requires: ClassVar[tuple[str, ...]] = ("torch", "torch.distributed.checkpoint.hf_storage", "safetensors.torch")

    @property
    def capabilities(self) -> Capabilities:
        """DCP syncs before Python flushes: the end of a file, or all of a small one such as the metadata, isn't synced.

        It doesn't sync the index at all.
        """
        archives = self.serialization == "torch_save"
        return Capabilities(
            can_reshard=archives,
            checksum=Checksum.WRITTEN if archives else Checksum.NONE,
            syncs=Syncs.SOME_FILES,
            needs_process_group=True,
        )

    def describe(self) -> Description:
        """Describe the archives, or the safetensors files."""
        archives = self.serialization == "torch_save"
        return Description(
            files=f"{'1 per thread' if self.single_file_per_rank else '1 per tensor'}, 1",
            format="a torch.save archive per tensor, and a pickle" if archives else "safetensors, and an index",
            chunks="none",
            compression="none",
            concurrency=f"{self.thread_count} {'thread' if self.thread_count == 1 else 'threads'}, a file each",
            dtype_on_disk="as in the state" if archives else "as in the state; complex128 as pairs of float64",
            order_of_writes="one after the other in each thread",
            other_readers="torch.distributed.checkpoint" if archives else "safetensors, transformers, vLLM",
            best_for="Sharded training (FSDP)",
            ranks="the files of each rank, and one for all" if archives else "one rank only",
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count all ranks' files, and the metadata, which locate all parts of a tensor."""
        self._refuse_sharded_safetensors(partition)
        files = sum_over_ranks(partition, self._rank_footprint)
        return Footprint(files.file_count + 1, files.size_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:
        """Write this rank's files; when all ranks have, rank 0 writes the metadata."""
        from torch.distributed.checkpoint import state_dict_saver

        call = self._call_of(state, directory, shards, group)
        with wrapped(f"can't save to {directory}"), dcp_errors.converted(f"can't save to {directory}"):
            metadata = state_dict_saver.save(
                call.tensors, storage_writer=call.writer, planner=call.planner, no_dist=call.is_alone
            )
            return call.files(metadata)

    def async_saver(self, way: str) -> AsyncSaver:
        """Call `async_save`, with a thread or a process of DCP's."""
        if way not in self.async_ways:
            return super().async_saver(way)
        return TorchDcpSaver(self._call_of, self.label, in_process=way == "library-process")

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Allocate the tensors, and let DCP copy the wanted rows into them."""
        import torch
        from torch.distributed.checkpoint import state_dict_loader

        from ckpt.formats import dcp_planners

        if stored is None or stored.is_single_read(wanted, group.size):
            return self._read_whole_tensors(directory, wanted)
        if self.serialization == "safetensors":
            self.refuse_resharding(stored, group)
        shards = stored.shards(wanted)
        owners = tuple(shard for shard in shards if shard.whole.same_as is None)
        with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
            reader, _, _ = _open(directory, self.thread_count)
            state = {
                shard.whole.name: torch.empty(shard.layout.shape, dtype=getattr(torch, shard.whole.dtype))
                for shard in owners
            }
            state_dict_loader.load(
                state, storage_reader=reader, planner=dcp_planners.LoadPlanner(owners), no_dist=group.size == 1
            )
        return {shard.whole.name: state[shard.whole.owner] for shard in shards}

    def load_state(self, directory: Path) -> tuple[Any, dict[str, str]]:
        """Read another program's checkpoint: the nested state with its plain values, and why some can't be read."""
        tensors = self.load(directory)
        with wrapped(f"can't load {directory}"):
            if (directory / INDEX).exists():
                return tensors, {}
            metadata = dcp_metadata.read(directory)
            values, unread = dcp_metadata.values_of(metadata, directory)
            flat = {key: (tensors | values)[key] for key in metadata.state_dict_metadata if key not in unread}
            return dcp_metadata.nested(flat, metadata), unread

    def inspect(self, directory: Path) -> tuple[Layout, int]:
        """Read the tensors' layout and the number of plain values from the metadata alone."""
        with wrapped(f"can't read {directory}"):
            metadata = dcp_metadata.read(directory)
            tensors = dcp_metadata.tensors_of(metadata)
            layout = tuple(
                TensorLayout(key, tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
                for key, entry in tensors.items()
            )
            return layout, len(metadata.state_dict_metadata) - len(tensors)

    def _rank_footprint(self, layout: Layout) -> Footprint:
        """Count one rank's files, without the metadata; archives hold tied tensors once per name."""
        archives = self.serialization == "torch_save"
        stored = [tensor for tensor in layout if archives or tensor.same_as is None]
        files = len(stored)
        if self.single_file_per_rank:
            files = self.thread_count if archives else min(self.thread_count, files)
        names = names_bytes(layout)
        return Footprint(files, sum(tensor.size_bytes + 4096 for tensor in stored) + 2 * names + 16384 * (files + 1))

    def _refuse_sharded_safetensors(self, partition: Partition) -> None:
        if self.serialization == "safetensors" and partition.count > 1:
            raise CheckpointError(
                f"strategy {self.label}: DCP's safetensors writer makes no checkpoint of what {partition.count} ranks "
                "save, it leaves out the index: take serialization = torch_save, or one rank"
            )

    def _call_of(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> DcpCall:
        """What to give to DCP for a rank's shards."""
        self._refuse_sharded_safetensors(shards.partition)
        if shards.partition.count > 1:
            return self._call_for_shards(state, directory, shards, group)
        for name, tensor in state.items():  # DCP would write this rank's part of a DTensor
            require_plain(tensor, f"tensor {name!r}")
        if self.serialization == "torch_save":
            return self._call_for_archives(state, directory)
        return self._call_for_safetensors(state, directory)

    def _call_for_archives(self, state: State, directory: Path) -> DcpCall:
        def files(metadata: Any) -> list[Path]:
            if len(metadata.storage_data) != len(state):
                raise dcp_errors.of_a_thread(directory)
            names = {_METADATA, *(entry.relative_path for entry in metadata.storage_data.values())}
            names |= {path.name for path in directory.glob("__0_*")}  # a thread without tensors has a file, too
            return [directory / name for name in names]

        return DcpCall(state, self._writer(directory), None, files, is_alone=True)

    def _call_for_safetensors(self, state: State, directory: Path) -> DcpCall:
        from torch.distributed.checkpoint import hf_storage

        (content,) = plan_files(RankShards.single(layout_of_state(state)), 0).values()
        tensors = pack(state, content.tensors)
        count = self.thread_count if self.single_file_per_rank else max(1, len(tensors))
        by_size = sorted(tensors, key=lambda key: tensors[key].nbytes, reverse=True)
        file_of = {key: number % count + 1 for number, key in enumerate(by_size)}
        writer = hf_storage.HuggingFaceStorageWriter(str(directory), file_of, self.thread_count)

        def files(_: Any) -> list[Path]:
            index = json.loads((directory / INDEX).read_text())
            if len(index["weight_map"]) != len(tensors):
                raise dcp_errors.of_a_thread(directory)
            index["metadata"] |= to_texts(content.tensors, content.tied)
            durable.write_atomically(directory / INDEX, json.dumps(index).encode(), sync=False)
            return [directory / file for file in {INDEX, *index["weight_map"].values()}]

        return DcpCall(tensors, writer, None, files, is_alone=True)

    def _call_for_shards(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> DcpCall:
        from ckpt.formats import dcp_planners

        owners = tuple(shard for shard in shards.owned if shard.whole.same_as is None)

        def files(metadata: Any) -> list[Path]:
            if not all(dcp_planners.index_of(shard) in metadata.storage_data for shard in owners):
                raise dcp_errors.of_a_thread(directory)
            written = list(directory.glob(f"__{group.rank}_*"))
            return written if group.rank else [*written, directory / _METADATA]

        tensors = {shard.whole.name: state[shard.whole.name] for shard in owners}
        return DcpCall(tensors, self._writer(directory), dcp_planners.SavePlanner(owners), files, is_alone=False)

    def _writer(self, directory: Path) -> Any:
        from torch.distributed.checkpoint import filesystem

        return filesystem.FileSystemWriter(
            directory, single_file_per_rank=self.single_file_per_rank, thread_count=self.thread_count
        )

    def _read_whole_tensors(self, directory: Path, names: Collection[str] | None) -> State:
        import torch
        from torch.distributed.checkpoint import state_dict_loader

        with wrapped(f"can't load {directory}"), dcp_errors.converted(f"can't load {directory}"):
            reader, known, packed = _open(directory, self.thread_count)
            key_of = {name: info.key for name, info in packed.items()} or {key: key for key in known}
            chosen = select(key_of, names, directory)
            stored = {key_of[name]: known[key_of[name]] for name in chosen}
            tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in stored.items()}
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=True)
            tensors |= {info.key: info.value(tensors[info.key]) for info in packed.values() if info.key in tensors}
            return {name: tensors[key_of[name]] for name in chosen}


def _open(directory: Path, thread_count: int) -> tuple[Any, dict[str, Any], dict[str, TensorInfo]]:
    """Open DCP's reader; returns it, the tensors' metadata by key, and the tensors of safetensors files by name."""
    from torch.distributed.checkpoint import filesystem, hf_storage

    if (directory / INDEX).exists():
        packed = safetensors_files.tensors_by_name(safetensors_files.headers_of(directory))
        hf_reader = hf_storage.HuggingFaceStorageReader(str(directory), thread_count)
        return hf_reader, hf_reader.read_metadata().state_dict_metadata, packed
    if not (directory / _METADATA).exists():
        raise CheckpointError(f"{directory} is no complete checkpoint: it has neither {_METADATA} nor {INDEX}")
    metadata = dcp_metadata.read(directory)
    reader = filesystem.FileSystemReader(directory)
    reader.read_metadata = lambda **_: metadata  # type: ignore[method-assign]  # DCP would unpickle it
    return reader, dcp_metadata.tensors_of(metadata), {}
