"""PyTorch's distributed checkpoint (DCP): its file system writer, or, in one process, its safetensors writer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ckpt.disk import durable
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import dcp_errors, dcp_metadata, safetensors_files
from ckpt.formats.safetensors_files import INDEX
from ckpt.formats.safetensors_metadata import TensorInfo, names_bytes, to_texts
from ckpt.formats.safetensors_packing import pack
from ckpt.formats.safetensors_plan import plan_files
from ckpt.process_group.group import ProcessGroup
from ckpt.state.dtypes import require_plain
from ckpt.state.layout import Layout, layout_of_state
from ckpt.state.sharding import Partition, RankShards
from ckpt.strategies._torch_dcp_archives import TorchDcpArchives
from ckpt.strategies._torch_dcp_saver import DcpCall
from ckpt.strategy import Capabilities, Checksum, Description, Footprint, Syncs, sum_over_ranks

if TYPE_CHECKING:
    from ckpt.state.layout import State


@dataclass(frozen=True)
class TorchDcp(TorchDcpArchives):
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

    requires: ClassVar[tuple[str, ...]] = ("torch", "torch.distributed.checkpoint.hf_storage", "safetensors.torch")

    @property
    def capabilities(self) -> Capabilities:
        """DCP syncs before Python flushes: the end of a file, or all of a small one such as the metadata, isn't synced.

        It doesn't sync the index at all.
        """
        archives = self.serialization == "torch_save"
        return Capabilities(
            can_reshard=archives,
            loads_in_place=True,
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
            return tuple(dcp_metadata.layouts(tensors).values()), len(metadata.state_dict_metadata) - len(tensors)

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

    def call_of(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> DcpCall:
        """What to give to DCP for a rank's shards."""
        self._refuse_sharded_safetensors(shards.partition)
        if self.serialization == "torch_save":
            return super().call_of(state, directory, shards, group)
        for name, tensor in state.items():
            require_plain(tensor, f"tensor {name!r}")
        return self._call_for_safetensors(state, directory)

    def writer(self, directory: Path) -> Any:
        """Create DCP's file system writer."""
        from torch.distributed.checkpoint import filesystem

        return filesystem.FileSystemWriter(
            directory, single_file_per_rank=self.single_file_per_rank, thread_count=self.thread_count
        )

    def reader(self, directory: Path) -> Any:
        """Create DCP's file system reader."""
        from torch.distributed.checkpoint import filesystem

        return filesystem.FileSystemReader(directory)

    def opened(self, directory: Path) -> tuple[Any, dict[str, Any], dict[str, TensorInfo]]:
        """Open the reader of what is there."""
        from torch.distributed.checkpoint import hf_storage

        if not (directory / INDEX).exists():
            if not (directory / dcp_metadata.FILE).exists():
                raise CheckpointError(
                    f"{directory} is no complete checkpoint: it has neither {dcp_metadata.FILE} nor {INDEX}"
                )
            return super().opened(directory)
        packed = safetensors_files.tensors_by_name(safetensors_files.headers_of(directory))
        hf_reader = hf_storage.HuggingFaceStorageReader(str(directory), self.thread_count)
        return hf_reader, hf_reader.read_metadata().state_dict_metadata, packed

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
