"""`DirectWriter`: writes DCP's files by direct I/O where that is faster, and commits them as a whole.

Every rank writes into a directory of its own beside the checkpoint's final name, so that ranks need not agree on one.
When all have, the coordinator moves the files into its own directory, syncs it and gives it the name.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ckpt.dcp.files_writer import FilesWriter, WriteOptions
from ckpt.disk import commit, durable, full, versions
from ckpt.disk.io_plan import Direct
from ckpt.disk.pinned import Identity, identity
from ckpt.errors import CheckpointError
from ckpt.formats import dcp_metadata


@dataclass(frozen=True, slots=True)
class _Stored:
    """DCP's storage data of an item, and the directory that the rank wrote to."""

    info: Any
    directory: Path


class DirectWriter(FilesWriter):
    """A storage writer for `dcp.save` and `dcp.async_save`, in one process or many.

    The checkpoint appears under its name when all ranks' files are on stable storage. After an error of any rank or
    thread, every rank gets an exception, and what was under the name before is still there.

    Args:
        path: of the checkpoint, a directory; the same on all ranks, on a filesystem that they share.
        files: that a rank writes at the same time; more than one for filesystems that keep a file on one server.
        threads: requests in flight per rank.
        block_mib: the size of a request in MiB; times `threads`, the memory that a save takes.
        direct: write past the page cache (true) or through it (false); by default as the filesystem is faster.
        checksum: store an XXH3-64 of every tensor in `.metadata`, which `DirectReader` can verify. The CRC-32 in the
            archives is left 0, which PyTorch ignores.
        overwrite: replace an earlier checkpoint of that name, or an empty directory, in a single step.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        files: int = 1,
        threads: int = 8,
        block_mib: int = 4,
        direct: Direct = "auto",
        checksum: bool = True,
        overwrite: bool = True,
    ) -> None:
        super().__init__(Path(path).absolute(), WriteOptions(files, threads, block_mib, direct, checksum))
        self._overwrite = overwrite
        self._staging: commit.Staging | None = None
        self._discard: Callable[[], Any] = lambda: None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only this process has, for `async_save` with a process."""
        return vars(self) | {"_staging": None, "_discard": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the rest."""
        vars(self).update(state, _discard=lambda: None)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # DCP's signature
        """Remove what an earlier save of this writer left, if it failed on another rank."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        self._end()

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the directory that becomes the checkpoint; only the coordinator is asked.

        Raises:
            CheckpointError: if the name belongs to anything but a DCP checkpoint or an empty directory.
        """
        final = versions.resolved(self.path)
        versions.finish(final)
        replaces = self._replaceable(final)
        durable.make_directories(final.parent)
        self._begin(commit.begin(final, replaces=replaces))
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files, and bring them to stable storage; the first error of a thread is raised."""
        done: Future[list[WriteResult]] = Future()
        if not plan.items:
            done.set_result([])
            return done
        staging = self._staging or self._begin(commit.beside(versions.resolved(self.path)))
        try:
            results = self._write_files(staging.path, plan, planner, sync=True)
        except Exception as error:
            is_ours = isinstance(error, CheckpointError)
            text = str(error) if is_ours else f"can't save to {self.path}: {type(error).__name__}: {error}"
            named = full.named(text, error, staging.path)
            self._end()
            raise CheckpointError(named) from error
        done.set_result(
            [replace(result, storage_data=_Stored(result.storage_data, staging.path)) for result in results]
        )
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint; only the coordinator is asked, when all ranks' files are on stable storage."""
        staging = self._staging
        assert staging is not None  # the coordinator has prepared the plans
        try:
            for of_rank in results:
                for directory in {result.storage_data.directory for result in of_rank}:
                    staging.collect(directory, {result.storage_data.info.relative_path for result in of_rank})
            written = [
                replace(result, storage_data=result.storage_data.info) for of_rank in results for result in of_rank
            ]
            self._write_metadata(staging.path, metadata, written, sync=True)
            staging.flush(files=False)
            staging.publish()
        finally:
            self._end()

    def _begin(self, staging: commit.Staging) -> commit.Staging:
        """Hold a directory until the save ends, or this object is gone: DCP doesn't report other ranks' errors."""
        self._staging = staging
        self._discard = weakref.finalize(self, staging.discard)
        return staging

    def _end(self) -> None:
        self._discard()
        self._staging = None

    def _replaceable(self, final: Path) -> Identity | None:
        """Return the identity of what a save replaces; None if the name is free."""
        if not os.path.lexists(final):
            return None
        if not final.is_dir():
            raise CheckpointError(f"{final} exists and is no directory: give the checkpoint another name")
        names = sorted(path.name for path in final.iterdir())
        others = [name for name in names if not dcp_metadata.is_file_name(name)]
        if others or (names and not self._overwrite):
            why = f"has other files ({', '.join(others[:3])})" if others else "has a checkpoint, and overwrite is false"
            raise CheckpointError(f"{final} {why}: give the new checkpoint another name, or move them away")
        return identity(final)
