"""Orbax, JAX's checkpoint library, given numpy arrays that share the tensors' memory."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.background.async_saver import AsyncSaver
from ckpt.disk import durable, listing
from ckpt.errors import CheckpointError, wrapped
from ckpt.formats import filenames
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.single_process import SingleProcessStrategy
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout
from ckpt.state.sharding import RankShards
from ckpt.strategy import Capabilities, Description, Footprint, Syncs

if TYPE_CHECKING:
    from ckpt.state.layout import State

_TREE = "tree"
_NAMES = "names.json"
_STATE = "state"  # one level down, where no name of a tensor meets one of orbax's own files


@dataclass(frozen=True)
class Orbax(SingleProcessStrategy):
    """`PyTreeCheckpointHandler` behind the synchronous `Checkpointer`.

    Orbax refuses tensors without elements: `names.json` has their dtypes and shapes, and the order of all tensors.

    Attributes:
        ocdbt: write one database instead of a directory per array.
        compression: compress with zstd.
    """

    ocdbt: bool = True
    compression: bool = True

    name: ClassVar[str] = "orbax"

    async_ways: ClassVar[tuple[str, ...]] = ("library",)

    requires: ClassVar[tuple[str, ...]] = ("torch", "orbax.checkpoint", "jax", "ml_dtypes")

    extra: ClassVar[str] = "peers"

    @property
    def capabilities(self) -> Capabilities:
        """TensorStore syncs the files that it writes; orbax doesn't sync the metadata that it writes itself."""
        return Capabilities(syncs=Syncs.SOME_FILES, atomic_files=True)

    def describe(self) -> Description:
        """Describe the arrays, in a database or in directories."""
        return Description(
            files="a few, 1 per 2 GiB, 1" if self.ocdbt else "2 per parameter, 4",
            format="zarr v2 arrays in an OCDBT database" if self.ocdbt else "zarr v2, one array per parameter",
            chunks="none",
            compression="zstd level 1" if self.compression else "none",
            concurrency="all parameters at once, file_io_concurrency 128",
            dtype_on_disk="as in the state",
            order_of_writes="all parameters at once",
            other_readers="orbax, TensorStore",
            best_for="JAX",
        )

    def prepare(self) -> None:
        """Import the libraries, and let JAX initialise its devices."""
        super().prepare()
        import jax

        jax.local_devices()

    def handler(self) -> Any:
        """Orbax's handler with these options."""
        import orbax.checkpoint as ocp

        return ocp.PyTreeCheckpointHandler(use_ocdbt=self.ocdbt, use_compression=self.compression)

    def async_saver(self, way: str) -> AsyncSaver:
        """Save with the asynchronous `AsyncCheckpointer`."""
        return _OrbaxSaver(self) if way in self.async_ways else super().async_saver(way)

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count all names of a tied tensor, uncompressed, and files for every name, whatever orbax packs."""
        size_bytes = sum(tensor.size_bytes + tensor.size_bytes // 1000 + 8192 for tensor in layout)
        size_bytes += sum(8 * len(json.dumps(tensor.name)) for tensor in layout)
        return Footprint(3 * len(layout) + 16, size_bytes + 2**17)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the tree into a subdirectory, which orbax renames once it is complete; then the names."""
        import orbax.checkpoint as ocp

        if tree := _tree(state):
            with ocp.Checkpointer(self.handler()) as checkpointer:
                checkpointer.save(path.absolute() / _TREE, args=ocp.args.PyTreeSave(tree))
        return _finish(path, _names(state))

    def read_rank(self, path: Path, names: Collection[str] | None) -> State:
        """Restore the tree, or a part of it, as numpy arrays."""
        import torch

        try:
            known = json.loads((path / _NAMES).read_text())
            chosen = select(known, names, path)
            files = {name: filenames.to_filename(name) for name in chosen if 0 not in known[name][1]}
            tree = _restore(path.absolute() / _TREE, list(files.values())) if files else {}
            return {
                name: memory.own(dtypes.to_torch(tree.pop(files[name])))
                if name in files
                else torch.empty(known[name][1], dtype=dtypes.torch_dtype(known[name][0]))
                for name in chosen
            }
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is no complete checkpoint: {error}") from error
        except CheckpointError:
            raise
        except Exception as error:  # orbax raises one of many kinds
            raise CheckpointError(f"can't restore {path}: {type(error).__name__}: {error}") from error


class _OrbaxSaver(AsyncSaver):
    """Orbax copies numpy arrays before its call returns, and writes the copies from threads of this process."""

    def __init__(self, strategy: Orbax) -> None:
        import orbax.checkpoint as ocp

        self._strategy = strategy
        self._checkpointer = ocp.AsyncCheckpointer(strategy.handler())
        self._running: tuple[Path, _Names] | None = None

    def start(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> None:  # noqa: ARG002  # no rank waits for another
        """Copy the state, and let orbax start."""
        import orbax.checkpoint as ocp

        with wrapped(f"can't save to {directory}"):
            path = self._strategy.rank_path(directory, shards)
            if tree := _tree(state):
                self._checkpointer.save(path.absolute() / _TREE, args=ocp.args.PyTreeSave(tree))
            self._running = path, _names(state)

    def finish(self) -> list[Path]:
        """Wait for orbax, and write the names."""
        assert self._running is not None  # the caller has started a save
        path, names = self._running
        self._running = None
        with wrapped(f"can't save to {path}"):
            self._checkpointer.wait_until_finished()
            return _finish(path, names)

    def close(self) -> None:
        """Wait for the save that is running, and end orbax's threads."""
        with suppress(Exception):  # of a save that nobody waited for
            self._checkpointer.close()


_Names = dict[str, tuple[str, list[int]]]
"""The dtypes and shapes of the tensors."""


def _tree(state: State) -> dict[str, Any]:
    """What orbax saves: numpy arrays by file name; empty if no tensor has elements."""
    arrays = {filenames.to_filename(name): dtypes.to_numpy(tensor) for name, tensor in state.items() if tensor.numel()}
    return {_STATE: arrays} if arrays else {}


def _names(state: State) -> _Names:
    return {name: (dtypes.name_of(tensor), list(tensor.shape)) for name, tensor in state.items()}


def _finish(path: Path, names: _Names) -> list[Path]:
    """Write the names beside the tree; returns all files, whose names orbax doesn't document."""
    durable.write_atomically(path / _NAMES, json.dumps(names).encode(), sync=False)
    return [Path(entry.path) for entry in listing.files_below(path)]


def _restore(path: Path, keys: list[str]) -> dict[str, Any]:
    import numpy as np
    import orbax.checkpoint as ocp

    arguments = ocp.args.PyTreeRestore(
        item={_STATE: dict.fromkeys(keys, 0)},
        restore_args={_STATE: {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in keys}},
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree: dict[str, Any] = checkpointer.restore(path, args=arguments)[_STATE]
    return tree
