"""`DirectReader`: reads only what is wanted of DCP's files, by direct I/O where that is faster, and in place."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import hf_storage
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ckpt.dcp import reads
from ckpt.dcp.located import Located
from ckpt.dcp.reads import Read
from ckpt.dcp.slices import Slice
from ckpt.disk import io_plan
from ckpt.disk.io_plan import Direct
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import dcp_metadata, torch_files
from ckpt.formats.dcp_entries import Finder
from ckpt.state import checksums
from ckpt.threads import over


class DirectReader(Located, StorageReader):
    """A storage reader for `dcp.load`, in one process or many.

    It reads what `DirectWriter`, `FileSystemWriter` and `HuggingFaceStorageWriter` write. Of a tensor it reads the rows
    that are wanted, straight into the target if that is contiguous and on the CPU.

    Args:
        path: of the checkpoint, a directory.
        threads: requests in flight per rank.
        direct: read past the page cache (true) or through it (false); by default as the filesystem is faster.
        verify: compare the checksums that `DirectWriter` stored; whole tensors are read for that.
        trusted: pass plain values to PyTorch even if reading them runs code that the files name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 8,
        direct: Direct = "auto",
        verify: bool = False,
        trusted: bool = False,
    ) -> None:
        super().__init__()
        self.path = Path(path).absolute()
        self._threads, self._direct, self._verify, self._trusted = threads, direct, verify, trusted
        self._metadata = Metadata({})

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin another load, from another path if one is given."""
        self.move(checkpoint_id)
        self._metadata = Metadata({})

    def read_metadata(self) -> Metadata:
        """Read `.metadata` without running code that it names, or the headers of safetensors files.

        Raises:
            CheckpointError: if there is no complete checkpoint, or it is damaged.
        """
        if (self.path / dcp_metadata.FILE).exists():
            with wrapped(f"can't read {self.path}"):  # whatever unpickling raises
                metadata = dcp_metadata.read(self.path)
        elif any(self.path.glob("*.safetensors")):
            metadata = hf_storage.HuggingFaceStorageReader(str(self.path)).read_metadata()
        else:
            raise CheckpointError(f"{self.path} is no complete checkpoint of DCP: it has no {dcp_metadata.FILE}")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = str(uuid.uuid4())
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  # DCP's signature
        """Take the metadata for `read_data`."""
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave a rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the ranks' plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's items.

        Raises:
            CheckpointError: if a file is damaged, or a value names a class that only `trusted` allows.
        """
        items_of: dict[MetadataIndex, list[ReadItem]] = {}
        values: list[tuple[ReadItem, io.BytesIO]] = []
        for item in plan.items:
            items_of.setdefault(item.storage_index, []).append(item)
        tensors = {index: items for index, items in items_of.items() if items[0].type is not LoadItemType.BYTE_IO}
        targets = {index: [planner.resolve_tensor(item).detach() for item in items] for index, items in tensors.items()}
        finder = Finder(self.path, self._metadata)
        wanted = over(
            tensors, lambda index: self._tensor_reads(index, tensors[index], targets[index], finder), self._threads
        )
        wanted += [
            [self._value_read(index, items, values)] for index, items in items_of.items() if index not in tensors
        ]
        plan_for = io_plan.plan_for(self.path, may_write=False).forced(self._direct)
        reads.run((read for some in wanted for read in some), plan_for, self._threads)
        for item, value in values:
            planner.load_bytes(item, self._harmless(item, value))
        for index, items in tensors.items():
            for item, target in zip(items, targets[index], strict=True):
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _tensor_reads(
        self, index: MetadataIndex, items: Sequence[ReadItem], targets: Sequence[torch.Tensor], finder: Finder
    ) -> list[Read]:
        """Return what to read of a stored tensor for all its wanted slices."""
        info = self._info_of(index)
        for item, target in zip(items, targets, strict=True):
            if target.shape != item.lengths:
                raise CheckpointError(
                    f"{self.path}: tensor {index.fqn!r} is loaded into {list(target.shape)}, planned was "
                    f"{list(item.lengths)}"
                )
        stored = finder.find(index, info)
        if stored is None:
            return [self._archive_read(index, items, targets)]
        slices = [Slice(stored, tuple(item.storage_offsets), tuple(item.lengths)) for item in items]
        if not self._verify:
            return [_slice_read(part, target) for part, target in zip(slices, targets, strict=True)]
        whole = slices[0].whole()
        if len(items) == 1 and slices[0].is_whole and _is_in_place(whole, targets[0]):
            return [self._checked(_slice_read(whole, targets[0]), index)]

        def use(content: torch.Tensor) -> None:
            tensor = whole.view(content)
            for part, target in zip(slices, targets, strict=True):
                target.copy_(_narrowed(tensor, part.offsets, part.lengths))

        return [self._checked(Read(stored.path, whole.offset, whole.size_bytes, use), index)]

    def _archive_read(self, index: MetadataIndex, items: Sequence[ReadItem], targets: Sequence[torch.Tensor]) -> Read:
        """Read a whole archive, for `torch.load`."""

        def use(content: torch.Tensor) -> None:
            tensor = torch_files.read(io.BytesIO(content.numpy().tobytes()), f"{index.fqn!r} in {self.path}")
            for item, target in zip(items, targets, strict=True):
                target.copy_(_narrowed(tensor, item.storage_offsets, item.lengths))

        return self._whole_read(index, use)

    def _value_read(
        self, index: MetadataIndex, items: Sequence[ReadItem], values: list[tuple[ReadItem, io.BytesIO]]
    ) -> Read:
        def use(content: torch.Tensor) -> None:
            values.extend((item, io.BytesIO(content.numpy().tobytes())) for item in items)

        return self._whole_read(index, use)

    def _whole_read(self, index: MetadataIndex, use: Any) -> Read:
        info = self._info_of(index)
        return self._checked(Read(self.path / info.relative_path, info.offset, info.length, use), index)

    def _checked(self, read: Read, index: MetadataIndex) -> Read:
        """Compare the checksum, if that is asked for, before what was read is used."""
        if not self._verify:
            return read
        expected = getattr(self._info_of(index), "xxh3", None)
        if expected is None:
            raise CheckpointError(
                f"{self.path} has no checksum of {index.fqn!r} that could be verified: only DirectWriter stores them. "
                "Leave `verify` out"
            )

        def use(content: torch.Tensor) -> None:
            if checksums.of(content) != expected:
                raise CheckpointError(f"{read.path} is damaged: {index.fqn!r} is not what was written (XXH3 differs)")
            read.use(content)

        return Read(read.path, read.offset, read.size_bytes, use, read.target)

    def _info_of(self, index: MetadataIndex) -> Any:
        info = self._metadata.storage_data.get(index)
        if info is None:
            raise CheckpointError(f"{self.path} is damaged: {index.fqn!r} is in no file")
        if getattr(info, "transform_descriptors", None):
            raise CheckpointError(
                f"{self.path}: {index.fqn!r} is packed by {', '.join(info.transform_descriptors)}: read it by "
                "PyTorch's FileSystemReader"
            )
        return info

    def _harmless(self, item: ReadItem, value: io.BytesIO) -> io.BytesIO:
        """Return a plain value's archive, which DCP's planner would unpickle whatever it names."""
        if not self._trusted:
            try:
                torch_files.read(value, f"{item.dest_index.fqn!r} in {self.path}")
            except CheckpointError as error:
                raise CheckpointError(f"{error}. DirectReader does that with trusted=True") from error
            value.seek(0)
        return value


def _slice_read(part: Slice, target: torch.Tensor) -> Read:
    """Read a slice in place, or the bytes that it lies in."""
    if _is_in_place(part, target):
        return Read(part.stored.path, part.offset, part.size_bytes, lambda _: None, target)
    return Read(part.stored.path, part.offset, part.size_bytes, lambda content: _copy(target, part.view(content)))


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _is_in_place(part: Slice, target: torch.Tensor) -> bool:
    is_plain = type(target) in {torch.Tensor, torch.nn.Parameter} and target.device.type == "cpu"
    if not (is_plain and part.is_dense and target.dtype == part.stored.dtype and target.is_contiguous()):
        return False
    return not (target.is_conj() or target.is_neg())


def _narrowed(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dimension, offset, length)
    return tensor
