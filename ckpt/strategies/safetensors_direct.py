"""safetensors at the disk's speed: a standard file that every reader of the format opens, moved by direct I/O.

save    a block at a time, from a few threads: straight from the tensor where its address allows, else through an
        aligned buffer, into a preallocated file; the header comes last, with a checksum for each tensor
load    into each tensor's own memory. Through the page cache where the pages are there already, past it where they
        aren't

Several ranks write a file each, and the first one the index, as `safetensors_file` does.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from ckpt.disk import durable
from ckpt.disk.direct_io import ALIGNMENT, DirectFile, aligned_buffer, in_blocks, preallocate, round_up
from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_files, safetensors_header, shard_files
from ckpt.formats.safetensors_files import files_with, headers_of, read_header
from ckpt.formats.safetensors_header import Entry
from ckpt.formats.safetensors_reading import read
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import checksums, dtypes, memory, ties
from ckpt.state.layout import Layout, TensorLayout, state_bytes
from ckpt.state.sharding import Fragment, Partition, RankShards
from ckpt.strategy import (
    Capabilities,
    Checksum,
    CheckTensor,
    Description,
    Footprint,
    Strategy,
    Wanted,
    sum_over_ranks,
)
from ckpt.threads import Beside

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


@dataclass(frozen=True)
class SafetensorsDirect(Strategy):
    """Standard safetensors files, written and read by direct I/O.

    Attributes:
        shard_mib: start another file when one has so many MiB, as transformers does; 0 for a single file. With several
            ranks, who each write one, it can't be given.
        checksum: keep an XXH3-64 of each tensor in the header.
        verify: compare the checksums on load.
        threads: requests in flight.
        block_mib: bytes of a write; with `threads`, the memory that a save takes.
    """

    shard_mib: Annotated[int, Field(ge=0)] = 0
    checksum: bool = True
    verify: bool = False
    threads: Annotated[int, Field(ge=1, le=64)] = 8
    block_mib: Annotated[int, Field(ge=1, le=256)] = 4

    name: ClassVar[str] = "safetensors_direct"

    requires: ClassVar[tuple[str, ...]] = ("torch", "ml_dtypes", "xxhash")

    @property
    def contradiction(self) -> str:
        """Nothing to compare without checksums."""
        return "verify = true has nothing to compare with checksum = false" if self.verify and not self.checksum else ""

    @property
    def capabilities(self) -> Capabilities:
        """A file gets its name before its data."""
        checksum = Checksum.WRITTEN if self.checksum else Checksum.NONE
        return Capabilities(can_reshard=True, checksum=Checksum.VERIFIED if self.verify else checksum)

    def describe(self) -> Description:
        """Describe the file, or the shards and their index."""
        return Description(
            files=f"1 per {self.shard_mib} MiB, 1" if self.shard_mib else "1",
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
        """A file for each rank, and the index."""
        shard_files.refuse_shards(self.shard_mib, partition)
        files = sum_over_ranks(partition, self._process_footprint)
        if partition.count == 1:
            return files
        return Footprint(
            files.file_count + 1, files.size_bytes + safetensors_header.footprint_bytes(partition.layout, 1)
        )

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write a file, and on the first rank the index, which follows from the partition."""
        if shards.partition.count == 1:
            return self._save(state, directory, {})
        shard_files.refuse_shards(self.shard_mib, shards.partition)
        place_of = {name: place for place, name in enumerate(state)}
        own = [each for each in shards.owned if each.whole.same_as is None]
        tied = {
            each.whole.name: (each.whole.same_as, place_of[each.whole.name])
            for each in shards.owned
            if each.whole.same_as is not None
        }
        places = safetensors_header.place([each.layout for each in own])
        entries = [replace(entry, rows=shard_files.row_range(each)) for entry, each in zip(places, own, strict=True)]
        path = directory / safetensors_files.shard_name(shards.rank, shards.partition.count)
        self._save_file(path, entries, tied, state)
        if shards.rank:
            return [path]
        index = safetensors_files.index_bytes(safetensors_files.files_together(shards.partition))
        durable.write_atomically(directory / safetensors_files.INDEX, index, sync=False)
        return [path, directory / safetensors_files.INDEX]

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read whole files, or the pages that have the wanted rows."""
        if stored is None or stored.is_single_read(wanted, group.size):
            return self._load(directory, wanted, None)
        shards = stored.shards(wanted)
        parts: dict[str, list[torch.Tensor]] = {}
        for path, fragments in files_with(directory, shards, stored).items():
            for fragment, tensor in zip(fragments, self._read_fragments(path, fragments), strict=True):
                parts.setdefault(fragment.wanted.whole.name, []).append(tensor)
        return shard_files.join(shards, parts)

    def save_checked(self, state: State, directory: Path) -> tuple[list[Path], dict[str, str]]:
        """The same; the checksums are those that the headers keep."""
        if not self.checksum:
            return super().save_checked(state, directory)
        sums: dict[str, str] = {}
        files = self._save(state, directory, sums)
        return files, sums

    def load_checked(self, directory: Path, names: Collection[str] | None, check: CheckTensor) -> State:
        """The same; each tensor is checked as soon as it is there, while others are being read."""
        return self._load(directory, names, check)

    def contents(self, directory: Path) -> Layout | None:
        """What the headers say."""
        headers = headers_of(directory).values()
        own = {entry.layout.name: entry.layout for header in headers for entry in header.entries}
        tied = [(name, owner) for header in headers for name, (owner, _) in header.tied.items()]
        return (*own.values(), *(replace(own[owner], name=name, same_as=owner) for name, owner in tied))

    def _process_footprint(self, layout: Layout) -> Footprint:
        """The bytes of the state, a header for each file, and an index where there are several."""
        own = [tensor for tensor in layout if tensor.same_as is None]
        count = sum(1 for _ in safetensors_files.shards(own, self.shard_mib * 2**20))
        return Footprint(
            count + (count > 1), state_bytes(layout) + safetensors_header.footprint_bytes(layout, count + (count > 1))
        )

    def _save(self, state: State, directory: Path, sums: dict[str, str]) -> list[Path]:
        tied = ties.tied(state)
        layouts = [
            TensorLayout(name, tuple(tensor.shape), dtypes.name_of(tensor))
            for name, tensor in state.items()
            if name not in tied
        ]
        groups = list(safetensors_files.shards(layouts, self.shard_mib * 2**20))
        tied_in: list[dict[str, tuple[str, int]]] = [{} for _ in groups]
        group_of = {layout.name: number for number, group in enumerate(groups) for layout in group}
        for name, (owner, place) in tied.items():
            tied_in[group_of[owner]][name] = owner, place
        written = [directory / safetensors_files.shard_name(number, len(groups)) for number in range(len(groups))]
        for path, group, ours in zip(written, groups, tied_in, strict=True):
            for entry in self._save_file(path, safetensors_header.place(group), ours, state):
                sums[entry.layout.name] = entry.checksum
        if len(groups) > 1:
            files = {path.name: group for path, group in zip(written, groups, strict=True)}
            written.append(directory / safetensors_files.INDEX)
            durable.write_atomically(written[-1], safetensors_files.index_bytes(files), sync=False)
        sums |= {name: sums[owner] for name, (owner, _) in tied.items() if owner in sums}
        return written

    def _save_file(
        self, path: Path, entries: Sequence[Entry], tied: safetensors_header.Tied, state: State
    ) -> Sequence[Entry]:
        blank = "0" * 16 if self.checksum else ""
        data_start = len(safetensors_header.header_bytes([replace(entry, checksum=blank) for entry in entries], tied))
        data_bytes = sum(entry.layout.size_bytes for entry in entries)
        places = sorted((entry for entry in entries if entry.layout.size_bytes), key=lambda entry: entry.start)
        starts = [entry.start for entry in places]
        sources = {entry: _Source(state[entry.layout.name], uses=1 + self.checksum) for entry in places}
        sums: dict[str, Future[str]] = {}
        block_bytes = self.block_mib * 2**20

        with DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file, Beside() as hashing:

            def parts(offset: int, end: int) -> list[np.ndarray[Any, Any]]:
                inside = places[bisect_right(starts, offset) - 1 : bisect_left(starts, end)]
                for entry in inside:
                    if self.checksum and entry.start >= offset:  # it begins here: hash it while it is being written
                        sums[entry.layout.name] = hashing.submit(sources[entry].checksum)
                return [
                    sources[entry].part(max(offset, entry.start) - entry.start, min(end, entry.end) - entry.start)
                    for entry in inside
                ]

            def write(offset: int, buffer: mmap.mmap) -> None:
                end = min(offset + block_bytes, data_bytes)
                file.write(_aligned(parts(offset, end), buffer, file), data_start + offset)

            preallocate(file.descriptor, round_up(data_start + data_bytes))
            with_header = min(data_bytes, round_up(data_start) - data_start)  # what shares a page with it
            first = [part.tobytes() for part in parts(0, with_header)] if with_header else []
            blocks = range(with_header, data_bytes, block_bytes)
            in_blocks(blocks, write, threads=self.threads, block_bytes=block_bytes)
            if self.checksum:
                empty = checksums.of_bytes(b"")
                found = {name: checksum.result() for name, checksum in sums.items()}
                entries = [replace(entry, checksum=found.get(entry.layout.name, empty)) for entry in entries]
            head = aligned_buffer(round_up(data_start))
            head.write(safetensors_header.header_bytes(entries, tied) + b"".join(first))
            file.write(memoryview(head), 0)
            os.ftruncate(file.descriptor, data_start + data_bytes)
        return entries

    def _load(self, directory: Path, names: Collection[str] | None, check: CheckTensor | None) -> State:
        headers = headers_of(directory)
        order = safetensors_header.in_order(headers.values())
        tied = {name: place for header in headers.values() for name, place in header.tied.items()}
        chosen = select(order, names, directory)
        owner_of = {name: tied[name][0] if name in tied else name for name in chosen}
        owners = set(owner_of.values())
        state: State = {}
        for path, header in headers.items():
            wanted = [entry for entry in header.entries if entry.layout.name in owners]
            state |= self._read(path, wanted, header.data_start, check)
        return {name: state[owner_of[name]] for name in chosen}

    def _read_fragments(self, path: Path, fragments: Sequence[Fragment]) -> Iterator[torch.Tensor]:
        """The wanted rows of one file's tensors; to verify a checksum, all of its rows are read."""
        header = read_header(path)
        held = {entry.layout.name: entry for entry in header.entries}
        wanted = []
        for fragment in fragments:
            entry = held.get(fragment.wanted.whole.name)
            if entry is None:
                raise CheckpointError(f"{path} belongs to another checkpoint: it has no {fragment.wanted.whole.name!r}")
            shard_files.compare(path, fragment, entry.layout.shape, entry.layout.dtype, entry.rows)
            wanted.append(entry if self.verify else safetensors_header.part_of(entry, fragment.rows))
        tensors = self._read(path, wanted, header.data_start)
        for fragment in fragments:
            tensor = tensors[fragment.wanted.whole.name]
            yield tensor if fragment.is_all or not self.verify else tensor[fragment.rows].clone()

    def _read(self, path: Path, entries: Sequence[Entry], data_start: int, check: CheckTensor | None = None) -> State:
        """Read some of a file's tensors."""

        def check_entry(entry: Entry, tensor: torch.Tensor) -> None:
            if self.verify:
                _verify(entry, tensor, path)
            if check:
                check(entry.layout.name, tensor)

        return read(path, entries, data_start, self.threads, check_entry if check or self.verify else None)


class _Source:
    """A tensor's bytes: its own memory where that is contiguous and here, else a copy for as long as it is in use."""

    def __init__(self, tensor: torch.Tensor, *, uses: int) -> None:
        self._tensor = tensor
        self._array: np.ndarray[Any, Any] | None = None
        self._bytes_left = uses * tensor.numel() * tensor.element_size()
        self._lock = threading.Lock()

    def part(self, start: int, end: int) -> np.ndarray[Any, Any]:
        with self._lock:
            array = dtypes.to_bytes(self._tensor) if self._array is None else self._array
            self._bytes_left -= end - start
            self._array = array if self._bytes_left else None
        return array[start:end]

    def checksum(self) -> str:
        return checksums.of_bytes(self.part(0, self._tensor.numel() * self._tensor.element_size()))


def _aligned(parts: Sequence[np.ndarray[Any, Any]], buffer: mmap.mmap, file: DirectFile) -> memoryview:
    """The bytes of a block as direct I/O wants them: as they lie, if they may, else copied together and padded.

    A device that takes whole sectors only gets them from the buffer, whose pages are huge: from a tensor's, which are
    not, they came 1.3 times as slowly.
    """
    takes = file.memory_alignment <= memory.ALIGNMENT and parts[0].ctypes.data % file.memory_alignment == 0
    if len(parts) == 1 and takes and len(parts[0]) % ALIGNMENT == 0:
        return parts[0].data
    staged = np.frombuffer(buffer, np.uint8)
    filled = 0
    for part in parts:
        staged[filled : filled + len(part)] = part
        filled += len(part)
    staged[filled : round_up(filled)] = 0
    return memoryview(buffer)[: round_up(filled)]


def _verify(entry: Entry, tensor: torch.Tensor, path: Path) -> None:
    if entry.checksum and checksums.of(tensor) != entry.checksum:
        raise CheckpointError(f"{path} is damaged: tensor {entry.layout.name!r} is not what was written (XXH3 differs)")
