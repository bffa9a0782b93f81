"""safetensors at the disk's speed: a standard file that every reader of the format opens, moved as the disk likes it.

save    block by block, from a few threads; the header comes last, with a checksum per tensor. By direct I/O, into a
        preallocated file: straight from the tensor where its address allows, else through an aligned buffer. Where the
        filesystem is faster through the page cache: so, and a block is flushed while the next ones are written
load    into the tensors' own memory: through the page cache if the pages are cached already, or if the filesystem is
        faster so; else by direct I/O

`ckpt.disk.io_plan` knows, or tries, which is faster. Several ranks write one file per rank, and the first one the
index, as with `safetensors_file`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ckpt.disk import durable, io_plan
from ckpt.disk.filesystems import FILE_MIB
from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_files, safetensors_plan, safetensors_reading, safetensors_writing, shard_files
from ckpt.formats.safetensors_header import Header, select_rows
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.formats.safetensors_plan import FileContent
from ckpt.process_group.group import ProcessGroup
from ckpt.state import checksums
from ckpt.state.layout import Layout, layout_of_state
from ckpt.state.sharding import Fragment, Partition, RankShards, Shard
from ckpt.strategy import Capabilities, Checksum, CheckTensor, Description, Footprint, Strategy, Wanted
from ckpt.threads import over

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_FILES_AT_ONCE = 4
"""Shards that are written at the same time: a filesystem may have its files on different servers."""


@dataclass(frozen=True)
class SafetensorsTuned(Strategy):
    """Standard safetensors files, written and read by direct I/O where that is faster than through the page cache.

    Attributes:
        shard_mib: the most that a file holds, unless one tensor is larger; 0 for a single file. By default 256 on
            GlusterFS, which keeps a file on one server, and 0 elsewhere. Several ranks write one file per rank, so it
            can't be given for them.
        checksum: store an XXH3-64 per tensor in the header.
        verify: compare the checksums on load.
        threads: requests in flight.
        block_mib: the size of a write request; times `threads`, the memory that a save takes.
        direct: write and read past the page cache (true) or through it (false); by default as the filesystem is faster,
            and files that are in the page cache are read from there.
    """

    shard_mib: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    checksum: bool = True
    verify: bool = False
    threads: Annotated[int, Field(ge=1, le=64)] = 8
    block_mib: Annotated[int, Field(ge=1, le=256)] = 4
    direct: Literal["auto", True, False] = "auto"

    name: ClassVar[str] = "safetensors_tuned"

    requires: ClassVar[tuple[str, ...]] = ("torch", "ml_dtypes", "xxhash")

    @property
    def contradiction(self) -> str:
        """Checksums that aren't stored can't be compared."""
        return "verify = true has nothing to compare with checksum = false" if self.verify and not self.checksum else ""

    @property
    def capabilities(self) -> Capabilities:
        """A file gets its name before its data."""
        checksum = Checksum.WRITTEN if self.checksum else Checksum.NONE
        checksum = Checksum.VERIFIED if self.verify else checksum
        return Capabilities(can_reshard=True, loads_in_place=True, checksum=checksum)

    def describe(self) -> Description:
        """Describe the file, or the shards and their index."""
        files = f"1 per {self.shard_mib} MiB, 1" if self.shard_mib else "1"
        return Description(
            files=f"1 (GlusterFS: 1 per {FILE_MIB} MiB, 1)" if self.shard_mib == "auto" else files,
            format="safetensors, its data where torch has it in a page",
            chunks="none",
            compression="none",
            concurrency=f"{self.threads} threads with {self.block_mib} MiB each",
            dtype_on_disk="as in the state",
            order_of_writes="by offset, all tensors in flight",
            other_readers="safetensors, transformers",
            best_for="Speed, in a format that everybody reads",
            ranks="a file for each rank, an index",
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per rank, or shards, and the index."""
        return Footprint(*safetensors_plan.footprint(partition, self._shard_mib(partition, several_files=True)))

    def _shard_mib(self, partition: Partition, *, several_files: bool) -> int:
        """Return the most that a file holds; 0 for a single one."""
        if self.shard_mib == "auto":
            return FILE_MIB if several_files and partition.count == 1 else 0
        return self.shard_mib

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write some files at the same time, and on the first rank the index, which follows from the partition."""
        files, _ = self._write(state, directory, shards)
        return files

    def save_checked(self, state: State, directory: Path) -> tuple[list[Path], dict[str, str]]:
        """Save; the checksums are those in the headers."""
        if not self.checksum:
            return super().save_checked(state, directory)
        layout = layout_of_state(state)
        files, sums = self._write(state, directory, RankShards.single(layout))
        return files, {tensor.name: sums[tensor.owner] for tensor in layout}

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # no rank waits for another
        """Read whole files, or the pages that have the wanted rows."""
        if stored is None:
            return self._read_tensors(directory, wanted, None)
        shards = stored.shards(wanted)
        parts: dict[str, list[torch.Tensor]] = {}
        for path, header, fragments in safetensors_files.stored_fragments(directory, shards, stored):
            for name, tensor in self._read_fragments(path, header, fragments):
                parts.setdefault(name, []).append(tensor)
        return shard_files.join(shards, parts)

    def load_checked(self, directory: Path, names: Collection[str] | None, check: CheckTensor) -> State:
        """Load, and check a tensor as soon as it is complete, while others are being read."""
        return self._read_tensors(directory, names, check)

    def fill(self, directory: Path, into: State, wanted: Wanted, stored: Partition | None, group: ProcessGroup) -> None:  # noqa: ARG002  # no rank waits for another
        """Read whole files, or the pages that have the wanted rows, straight into the targets."""
        if stored is None:
            self._fill_tensors(directory, into, None)
            return
        shards = {shard.whole.name: shard for shard in stored.shards(wanted) if shard.whole.same_as is None}
        shard_files.check_targets({name: shard.layout for name, shard in shards.items()}, into, directory)
        for path, header, fragments in list(safetensors_files.stored_fragments(directory, [*shards.values()], stored)):
            self._fill_fragments(path, header, fragments, shards, into)

    def fill_checked(self, directory: Path, targets: State, check: CheckTensor) -> None:
        """Fill, and check a tensor as soon as it is complete, while others are being read."""
        self._fill_tensors(directory, targets, check)

    def contents(self, directory: Path) -> Layout | None:
        """List the tensors in the headers."""
        return safetensors_files.contents_of(safetensors_files.headers_of(directory))

    def _write(self, state: State, directory: Path, shards: RankShards) -> tuple[list[Path], dict[str, str]]:
        """Write the files; returns them, and the checksums of the tensors that aren't tied to others."""
        plan = io_plan.plan_for(directory).forced(self.direct)
        shard_mib = self._shard_mib(shards.partition, several_files=plan.several_files)
        shard_files.refuse_shards(shard_mib, shards.partition)
        files = safetensors_plan.plan_files(shards, shard_mib)
        at_once = min(len(files), self.threads, _FILES_AT_ONCE)

        def write_file(item: tuple[str, FileContent]) -> dict[str, str]:
            return safetensors_writing.write(
                directory / item[0],
                item[1],
                state,
                plan,
                checksum=self.checksum,
                threads=self.threads // at_once,
                block_bytes=self.block_mib * 2**20,
            )

        sums = {name: checksum for file in over(files.items(), write_file, at_once) for name, checksum in file.items()}
        index = safetensors_plan.index_bytes(shards, files)
        if index:
            durable.write_atomically(directory / safetensors_files.INDEX, index, sync=False)
        return [directory / file for file in (*files, *([safetensors_files.INDEX] if index else []))], sums

    def _read_tensors(self, directory: Path, names: Collection[str] | None, check: CheckTensor | None) -> State:
        headers = safetensors_files.headers_of(directory)
        stored = safetensors_files.tensors_by_name(headers)
        chosen = shard_files.select(stored, names, directory)
        owners = {stored[name].layout.name for name in chosen}
        state: State = {}
        for path, header in headers.items():
            infos = [info for info in header.tensors if info.layout.name in owners]
            state |= self._read_file(path, infos, header.data_start, check)
        return {name: state[stored[name].layout.name] for name in chosen}

    def _read_fragments(
        self, path: Path, header: Header, fragments: Sequence[tuple[Fragment, TensorInfo]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Read the wanted rows of one file's tensors; to verify a checksum, all rows that it has."""
        infos = [info if self.verify else select_rows(info, fragment.rows) for fragment, info in fragments]
        tensors = self._read_file(path, infos, header.data_start, None)
        for fragment, info in fragments:
            tensor = tensors[info.layout.name]
            yield info.layout.name, tensor if fragment.is_all or not self.verify else tensor[fragment.rows].clone()

    def _fill_tensors(self, directory: Path, targets: State, check: CheckTensor | None) -> None:
        headers = safetensors_files.headers_of(directory)
        stored = safetensors_files.tensors_by_name(headers)
        shard_files.check_targets({name: info.layout for name, info in stored.items()}, targets, directory)
        by_owner = {stored[name].layout.name: target for name, target in targets.items()}
        for path, header in headers.items():
            infos = [info for info in header.tensors if info.layout.name in by_owner]
            self._fill_file(path, infos, header.data_start, by_owner, check)

    def _fill_fragments(
        self,
        path: Path,
        header: Header,
        fragments: Sequence[tuple[Fragment, TensorInfo]],
        shards: Mapping[str, Shard],
        targets: State,
    ) -> None:
        """Read the wanted rows of one file's tensors into the rows of the targets; see `_read_fragments`."""
        rows_of = {
            info.layout.name: shard_files.rows_in(targets[info.layout.name], shards[info.layout.name], fragment)
            for fragment, info in fragments
        }
        if self.verify:
            for name, tensor in self._read_fragments(path, header, fragments):
                rows_of[name].copy_(tensor)
            return
        infos = [select_rows(info, fragment.rows) for fragment, info in fragments]
        self._fill_file(path, infos, header.data_start, rows_of, None)

    def _fill_file(
        self, path: Path, infos: Sequence[TensorInfo], data_start: int, targets: State, check: CheckTensor | None
    ) -> None:
        plan = io_plan.plan_for(path.parent, may_write=False).forced(self.direct)
        checking = self._checking(path, check)
        safetensors_reading.fill(path, infos, data_start, plan, self.threads, targets, checking)

    def _read_file(self, path: Path, infos: Sequence[TensorInfo], data_start: int, check: CheckTensor | None) -> State:
        plan = io_plan.plan_for(path.parent, may_write=False).forced(self.direct)
        return safetensors_reading.read(path, infos, data_start, plan, self.threads, self._checking(path, check))

    def _checking(self, path: Path, check: CheckTensor | None) -> safetensors_reading.Check | None:
        """Return what is to be called with a tensor that is complete; None if there is nothing to check."""

        def check_tensor(info: TensorInfo, tensor: torch.Tensor) -> None:
            if self.verify:
                _verify(info, tensor, path)
            if check:
                check(info.layout.name, tensor)

        return check_tensor if check or self.verify else None


def _verify(info: TensorInfo, tensor: torch.Tensor, path: Path) -> None:
    if info.checksum and checksums.of(tensor) != info.checksum:
        raise CheckpointError(f"{path} is damaged: tensor {info.layout.name!r} is not what was written (XXH3 differs)")
