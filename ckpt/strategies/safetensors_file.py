"""`safetensors.torch.save_file`: one file, or shards and their index as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt import storage
from ckpt.errors import CheckpointError
from ckpt.layout import Layout, state_bytes
from ckpt.strategies._safetensors_names import METADATA_KEY, Note, names_bytes, pack
from ckpt.strategy import Facts, Footprint, Strategy, select

if TYPE_CHECKING:
    import torch

    from ckpt.state import State

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MIB = 2**20


@dataclass(frozen=True)
class SafetensorsFile(Strategy):
    """Hugging Face's format: a JSON header and raw tensors.

    Attributes:
        shard_mib: the most that a shard holds, unless one tensor is larger; 0 for a single file.
    """

    shard_mib: Annotated[int, Field(ge=0)] = 0

    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors.torch")

    marker: ClassVar[str] = "*.safetensors"

    as_pairs: ClassVar[tuple[str, ...]] = ("complex128",)
    """The dtypes that the format has no name for."""

    @property
    def facts(self) -> Facts:
        """What it does."""
        return Facts(
            files="1 per shard, 1" if self.shard_mib else "1",
            format="safetensors: a JSON header and raw tensors",
            chunks="none",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state; complex128 as pairs of float64",
            order_of_writes="one call for each shard" if self.shard_mib else "one call for the whole state",
            synced="no",
            atomic="each file",
            checksum="none",
            partial_load="by tensor",
            other_readers="safetensors, transformers, vLLM",
            best_for="Sharing weights",
        )

    def footprint(self, layout: Layout) -> Footprint:
        """A file per shard, and an index if there are several: the bytes of the state, and headers."""
        sizes = {tensor.name: tensor.size_bytes for tensor in layout if tensor.same_as is None}
        shards = len(self._shards(sizes))
        headers = sum(256 + names_bytes(tensor) for tensor in layout) + 4096 * (shards + 1)
        return Footprint(shards + (shards > 1), state_bytes(layout) + headers)

    def save(self, state: State, directory: Path) -> None:
        """Write one shard after the other, then the index."""
        from safetensors.torch import save_file

        tensors, note = pack(state, self.as_pairs)
        shards = self._shards({key: tensor.nbytes for key, tensor in tensors.items()})
        ours = {METADATA_KEY: note.to_json()}
        if len(shards) == 1:
            save_file(tensors, directory / _FILE, {"format": "pt", **ours})
            return
        weight_map: dict[str, str] = {}
        for number, keys in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file({key: tensors[key] for key in keys}, directory / file, {"format": "pt"})
            weight_map |= dict.fromkeys(keys, file)
        totals = {
            "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "total_size": sum(tensor.nbytes for tensor in tensors.values()),
        }
        index = json.dumps({"metadata": totals | ours, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
        storage.write_whole(directory / _INDEX, index.encode(), sync=False)

    def load(self, directory: Path, names: Collection[str] | None = None) -> State:
        """Read each tensor into memory of its own; not through a mapping, whose bytes would be copied once more."""
        try:
            file_of, note = _read_index(directory)
            chosen = select(note.key_of, names, directory)
            keys_in: dict[str, list[str]] = {}
            for key in dict.fromkeys(note.key_of[name] for name in chosen):
                keys_in.setdefault(file_of[key], []).append(key)
            tensors: dict[str, torch.Tensor] = {}
            for file, keys in keys_in.items():
                tensors |= self.read(directory / file, keys)
            return note.restore(tensors, chosen)
        except CheckpointError:
            raise
        except Exception as error:  # safetensors raises one of many kinds
            raise CheckpointError(
                f"can't load the safetensors in {directory}: {type(error).__name__}: {error}"
            ) from error

    def read(self, path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        """The tensors of these keys of one file."""
        with _open(path) as opened:
            return {key: opened.get_tensor(key) for key in keys}

    def _shards(self, sizes: Mapping[str, int]) -> list[list[str]]:
        """Which tensors go into which file: filled in their order, as transformers does."""
        if not self.shard_mib:
            return [list(sizes)]
        shards: list[list[str]] = []
        current: list[str] = []
        current_bytes = 0
        for key, size_bytes in sizes.items():
            if size_bytes > self.shard_mib * _MIB:
                shards.append([key])
                continue
            if current_bytes + size_bytes > self.shard_mib * _MIB:
                shards.append(current)
                current, current_bytes = [], 0
            current.append(key)
            current_bytes += size_bytes
        return [*shards, current] if current or not shards else shards


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt", backend="pread")


def _read_index(directory: Path) -> tuple[dict[str, str], Note]:
    """Which file holds each key, and the note; files of others have none."""
    if (directory / _INDEX).exists():
        index = json.loads((directory / _INDEX).read_text())
        file_of, metadata = index["weight_map"], index["metadata"]
        outside = [file for file in file_of.values() if Path(file).name != file]
        if outside:
            raise CheckpointError(f"{directory / _INDEX} names a file outside its directory: {outside[0]!r}")
    elif (directory / _FILE).exists():
        with _open(directory / _FILE) as opened:
            file_of, metadata = dict.fromkeys(opened.offset_keys(), _FILE), opened.metadata() or {}
    else:
        raise CheckpointError(f"{directory} is no complete checkpoint: it has neither {_FILE} nor {_INDEX}")
    note = metadata.get(METADATA_KEY)
    return file_of, Note.from_json(note) if note else Note({key: key for key in file_of}, [])
