"""Writes the files of a DCP checkpoint into a directory that exists; it neither syncs nor commits them."""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ckpt.dcp.located import Located
from ckpt.disk import durable, io_plan
from ckpt.disk.io_plan import Direct
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_files, dcp_metadata
from ckpt.threads import over


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a rank writes its files.

    Attributes:
        files: that the rank writes at the same time.
        threads: requests in flight, over all files.
        block_mib: the size of a request in MiB; times `threads`, the memory that a save takes.
        direct: past the page cache (true) or through it (false); by default as the filesystem is faster.
        checksum: store an XXH3-64 of every item.
    """

    files: int = 1
    threads: int = 8
    block_mib: int = 4
    direct: Direct = "auto"
    checksum: bool = True


class FilesWriter(Located, StorageWriter):
    """DCP's storage writer for a directory that exists, is the same for all ranks, and was empty.

    Args:
        path: the directory.
        options: how to write.
    """

    def __init__(self, path: Path, options: WriteOptions) -> None:
        super().__init__()
        self.path = path
        self._options = options
        self._save_id = str(uuid.uuid4())

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin another save, to another path if one is given."""
        self.move(checkpoint_id)
        self._save_id = str(uuid.uuid4())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  # DCP's signature
        """Refuse a save whose ranks don't exchange their plans."""
        if not kwargs.get("use_collectives", True):
            raise CheckpointError(
                f"can't save to {self.path} with use_collectives=False: the ranks must agree that all files are "
                "complete. Leave the argument out"
            )

    def storage_meta(self) -> StorageMeta:
        """Return what identifies this save."""
        return StorageMeta(checkpoint_id=self.path, save_id=self._save_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave a rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give every rank the beginning of its files' names, as DCP's writer does."""
        return [
            replace(plan, storage_data=filesystem._StoragePrefix(f"__{rank}_"))  # noqa: SLF001  # as others expect it
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files; the first error of a thread is raised."""
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write_files(self.path, plan, planner, sync=False))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write `.metadata`."""
        self._write_metadata(self.path, metadata, [result for of_rank in results for result in of_rank], sync=False)

    def _write_files(self, directory: Path, plan: SavePlan, planner: SavePlanner, *, sync: bool) -> list[WriteResult]:
        items = [(item, _value_of(item, planner)) for item in plan.items]
        return write_files(directory, plan.storage_data.prefix, items, self._options, sync=sync)

    def _write_metadata(self, directory: Path, metadata: Metadata, results: list[WriteResult], *, sync: bool) -> None:
        if hasattr(metadata, "version"):  # since PyTorch 2.9
            metadata.version = filesystem.CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for result in results}
        metadata.storage_meta = self.storage_meta()
        durable.write_atomically(directory / dcp_metadata.FILE, pickle.dumps(metadata), sync=sync)


def write_files(
    directory: Path, prefix: str, items: Sequence[tuple[WriteItem, Any]], options: WriteOptions, *, sync: bool
) -> list[WriteResult]:
    """Write a rank's items into as many files as the options say, fewer if there are fewer items.

    Args:
        directory: that exists.
        prefix: the beginning of the files' names.
        items: of DCP's plan, with their tensors or `io.BytesIO`.
        options: how to write.
        sync: bring the files to stable storage.
    """
    groups = [group for group in _divided(items, options.files) if group]
    settings = dcp_files.Settings(
        plan=io_plan.plan_for(directory).forced(options.direct),
        threads=max(1, options.threads // max(1, len(groups))),
        block_bytes=options.block_mib * 2**20,
        checksum=options.checksum,
        sync=sync,
    )

    def write(numbered: tuple[int, list[tuple[WriteItem, Any]]]) -> list[WriteResult]:
        number, group = numbered
        return dcp_files.write(directory / f"{prefix}{number}{filesystem.DEFAULT_SUFFIX}", group, settings)

    written = over(enumerate(groups), write, len(groups))
    return [result for of_file in written for result in of_file]


def _value_of(item: WriteItem, planner: SavePlanner) -> Any:
    value = planner.resolve_data(item)
    if item.type == WriteItemType.BYTE_IO:
        assert isinstance(value, io.BytesIO)  # DCP's contract
        return value
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _divided(items: Sequence[tuple[WriteItem, Any]], count: int) -> list[list[tuple[WriteItem, Any]]]:
    """Divide items into groups of about the same number of bytes, keeping their order within a group."""
    sizes = [value.getbuffer().nbytes if isinstance(value, io.BytesIO) else value.nbytes for _, value in items]
    group_of: dict[int, int] = {}
    filled = [0] * count
    for number in sorted(range(len(items)), key=lambda number: sizes[number], reverse=True):
        group_of[number] = filled.index(min(filled))
        filled[group_of[number]] += sizes[number]
    return [[item for number, item in enumerate(items) if group_of[number] == group] for group in range(count)]
