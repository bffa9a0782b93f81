"""PyTorch's distributed checkpoint (DCP) with this package's storage layer, `ckpt.dcp`, under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ckpt.formats.safetensors_metadata import names_bytes
from ckpt.state import memory
from ckpt.state.layout import Layout, TensorLayout
from ckpt.state.sharding import Partition
from ckpt.strategies._torch_dcp_archives import TorchDcpArchives
from ckpt.strategy import Capabilities, Checksum, Description, Footprint, sum_over_ranks
from ckpt.threads import Beside

if TYPE_CHECKING:
    from ckpt.dcp import DirectReader
    from ckpt.dcp.files_writer import FilesWriter
    from ckpt.state.layout import State


@dataclass(frozen=True)
class TorchDcpDirect(TorchDcpArchives):
    """DCP's own files, which PyTorch reads, written and read by direct I/O where that is faster.

    It is what `dcp.save(state, storage_writer=ckpt.dcp.DirectWriter(path))` does.

    Attributes:
        files: that a rank writes at the same time; more than one for filesystems that keep a file on one server.
        checksum: store an XXH3-64 per tensor in the metadata.
        verify: compare the checksums on load.
        threads: requests in flight per rank.
        block_mib: the size of a write request; times `threads`, the memory that a save takes.
        direct: write and read past the page cache (true) or through it (false); by default as the filesystem is faster,
            and files that are in the page cache are read from there.
    """

    files: Annotated[int, Field(ge=1, le=64)] = 1
    checksum: bool = True
    verify: bool = False
    threads: Annotated[int, Field(ge=1, le=64)] = 8
    block_mib: Annotated[int, Field(ge=1, le=256)] = 4
    direct: Literal["auto", True, False] = "auto"

    name: ClassVar[str] = "torch_dcp_direct"

    requires: ClassVar[tuple[str, ...]] = ("torch", "torch.distributed.checkpoint.hf_storage", "ckpt.dcp", "xxhash")

    @property
    def contradiction(self) -> str:
        """Checksums that aren't stored can't be compared."""
        return "verify = true has nothing to compare with checksum = false" if self.verify and not self.checksum else ""

    @property
    def capabilities(self) -> Capabilities:
        """A file gets its name before its data."""
        checksum = Checksum.WRITTEN if self.checksum else Checksum.NONE
        return Capabilities(
            can_reshard=True,
            loads_in_place=True,
            checksum=Checksum.VERIFIED if self.verify else checksum,
            needs_process_group=True,
        )

    def describe(self) -> Description:
        """Describe the archives."""
        return Description(
            files=f"{self.files}, 1",
            format="a torch.save archive per tensor, and a pickle",
            chunks="none",
            compression="none",
            concurrency=f"{self.threads} threads with {self.block_mib} MiB each",
            dtype_on_disk="as in the state",
            order_of_writes="by offset, all tensors in flight",
            other_readers="torch.distributed.checkpoint",
            best_for="Sharded training (FSDP), at the disk's speed",
            ranks="the files of each rank, and one for all",
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count all ranks' files, and the metadata, which locate all parts of a tensor."""
        files = sum_over_ranks(partition, self._rank_footprint)
        return Footprint(files.file_count + 1, files.size_bytes)

    @contextmanager
    def new_memory(self, layouts: Mapping[str, TensorLayout]) -> Iterator[State]:
        """Allocate huge pages, and prefault them while the first tensors are read."""
        tensors = {name: memory.empty(layout) for name, layout in layouts.items()}
        with Beside() as beside:
            beside.submit(memory.prefault, list(tensors.values()))
            yield tensors

    def writer(self, directory: Path) -> FilesWriter:
        """Create a writer that leaves syncing and the commit to the caller."""
        from ckpt.dcp.files_writer import FilesWriter, WriteOptions

        return FilesWriter(
            directory, WriteOptions(self.files, self.threads, self.block_mib, self.direct, self.checksum)
        )

    def reader(self, directory: Path) -> DirectReader:
        """Create a reader."""
        from ckpt.dcp import DirectReader

        return DirectReader(directory, threads=self.threads, direct=self.direct, verify=self.verify)

    def _rank_footprint(self, layout: Layout) -> Footprint:
        """Count one rank's files, without the metadata: two pages per archive, and tied tensors once per name."""
        files = min(self.files, len(layout))
        names = names_bytes(layout)
        return Footprint(files, sum(tensor.size_bytes + 8192 for tensor in layout) + 2 * names + 16384 * (files + 1))
