"""Orbax, JAX's checkpoint library, given numpy arrays that share the tensors' memory."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt.disk import durable, listing
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.shard_files import select
from ckpt.single_process import SingleProcessStrategy
from ckpt.state import dtypes, memory
from ckpt.state.layout import Layout
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

    def rank_footprint(self, layout: Layout) -> Footprint:
        """Count all names of a tied tensor, uncompressed, and files for every name, whatever orbax packs."""
        size_bytes = sum(tensor.size_bytes + tensor.size_bytes // 1000 + 8192 for tensor in layout)
        size_bytes += sum(8 * len(json.dumps(tensor.name)) for tensor in layout)
        return Footprint(3 * len(layout) + 16, size_bytes + 2**17)

    def write_rank(self, state: State, path: Path) -> list[Path]:
        """Write the tree into a subdirectory, which orbax renames once it is complete; then the names."""
        import orbax.checkpoint as ocp

        tree = {
            filenames.to_filename(name): dtypes.to_numpy(tensor) for name, tensor in state.items() if tensor.numel()
        }
        if tree:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=self.ocdbt, use_compression=self.compression)
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(path.absolute() / _TREE, args=ocp.args.PyTreeSave({_STATE: tree}))
        names = {name: [dtypes.name_of(tensor), list(tensor.shape)] for name, tensor in state.items()}
        durable.write_atomically(path / _NAMES, json.dumps(names).encode(), sync=False)
        # Orbax doesn't document the names of its files.
        return [Path(entry.path) for entry in listing.files_below(path)]

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
