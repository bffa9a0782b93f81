"""`safetensors.torch.save_file`: one file, or shards and their index as transformers writes them.

Several ranks write one file per rank, and the first one the index; none waits for another. If they hold whole tensors,
transformers can read the checkpoint. If they hold rows, each file's metadata have their numbers, and the index names a
file that doesn't exist, so that no program takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_files, safetensors_metadata, safetensors_plan, shard_files
from ckpt.formats.safetensors_metadata import TensorInfo
from ckpt.formats.safetensors_packing import pack
from ckpt.process_group.group import ProcessGroup
from ckpt.state import memory
from ckpt.state.layout import Layout
from ckpt.state.sharding import Fragment, Partition, RankShards
from ckpt.strategy import Capabilities, Description, Footprint, Strategy, Wanted

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State


@dataclass(frozen=True)
class SafetensorsFile(Strategy):
    """Hugging Face's format: a JSON header and raw tensors.

    Attributes:
        shard_mib: the most that a file holds, unless one tensor is larger; 0 for a single file. Several ranks write one
            file per rank, so it can't be given for them.
    """

    shard_mib: Annotated[int, Field(ge=0)] = 0

    name: ClassVar[str] = "safetensors_file"

    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors.torch")

    as_pairs: ClassVar[tuple[str, ...]] = ("complex128",)
    """The dtypes that are stored as pairs of real numbers, since the library can't store them."""

    @property
    def capabilities(self) -> Capabilities:
        """Rust closes a file that goes out of scope, and ignores errors."""
        return Capabilities(can_reshard=True, atomic_files=True, reports_close_errors=False)

    def describe(self) -> Description:
        """Describe the file, or the shards and their index."""
        return Description(
            files="1 per shard, 1" if self.shard_mib else "1",
            format="safetensors: a JSON header and raw tensors",
            chunks="none",
            compression="none",
            concurrency="one thread",
            dtype_on_disk="as in the state; complex128 as pairs of float64",
            order_of_writes="one call for each shard" if self.shard_mib else "one call for the whole state",
            other_readers="safetensors, transformers, vLLM",
            best_for="Sharing weights",
            ranks="a file for each rank, an index",
        )

    def footprint(self, partition: Partition) -> Footprint:
        """Count a file per rank, or shards, and the index."""
        return Footprint(*safetensors_plan.footprint(partition, self.shard_mib))

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write one file after the other, and on the first rank the index, which follows from the partition."""
        from safetensors.torch import save_file

        shard_files.refuse_shards(self.shard_mib, shards.partition)
        files = safetensors_plan.plan_files(shards, self.shard_mib, self.as_pairs)
        tensors = pack(state, [info for content in files.values() for info in content.tensors])
        for file, content in files.items():
            keys = [safetensors_metadata.stored_name(info.layout.name) for info in content.tensors]
            metadata = safetensors_metadata.to_texts(content.tensors, content.tied)
            save_file({key: tensors[key] for key in keys}, directory / file, metadata)
        index = safetensors_plan.index_bytes(shards, files)
        if index:
            durable.write_atomically(directory / safetensors_files.INDEX, index, sync=False)
        return [directory / file for file in (*files, *([safetensors_files.INDEX] if index else []))]

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:  # noqa: ARG002  # no rank waits for another
        """Read the wanted rows from the files that have some of them."""
        with _library_errors(directory):
            if stored is None:
                return self._read_tensors(directory, wanted)
            shards = stored.shards(wanted)
            parts: dict[str, list[torch.Tensor]] = {}
            for path, _, fragments in safetensors_files.stored_fragments(directory, shards, stored):
                for name, tensor in self._read_fragments(path, fragments):
                    parts.setdefault(name, []).append(tensor)
            return shard_files.join(shards, parts)

    def contents(self, directory: Path) -> Layout | None:
        """List the tensors in the headers."""
        return safetensors_files.contents_of(safetensors_files.headers_of(directory))

    def read_file(self, path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        """Read the tensors of these keys from one file into memory of their own.

        A mapping isn't used: its bytes would be copied once more.
        """
        with _open(path, backend="pread") as opened:
            return {key: memory.own(opened.get_tensor(key)) for key in keys}

    def _read_tensors(self, directory: Path, names: Collection[str] | None) -> State:
        headers = safetensors_files.headers_of(directory)
        stored = safetensors_files.tensors_by_name(headers)
        chosen = shard_files.select(stored, names, directory)
        owners = {stored[name].layout.name for name in chosen}
        state: State = {}
        for path, header in headers.items():
            infos = [info for info in header.tensors if info.layout.name in owners]
            if infos:
                tensors = self.read_file(path, [info.key for info in infos])
                state |= {info.layout.name: info.value(tensors[info.key]) for info in infos}
        return {name: state[stored[name].layout.name] for name in chosen}

    def _read_fragments(
        self, path: Path, fragments: Sequence[tuple[Fragment, TensorInfo]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Read the wanted rows of one file's tensors."""
        whole = [info.key for fragment, info in fragments if fragment.is_all]
        tensors = self.read_file(path, whole) if whole else {}
        if len(whole) < len(fragments):
            with _open(path) as opened:  # mapped: for some rows, `pread` would read the whole tensor
                for fragment, info in fragments:
                    if not fragment.is_all:
                        tensors[info.key] = opened.get_slice(info.key)[fragment.rows].clone()
        for fragment, info in fragments:
            yield fragment.wanted.whole.name, info.value(tensors[info.key])


@contextmanager
def _library_errors(directory: Path) -> Iterator[None]:
    """Convert the library's errors, which are of many types."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"can't load the safetensors in {directory}: {type(error).__name__}: {error}") from error


def _open(path: Path, **options: str) -> Any:
    from safetensors import safe_open

    path.open("rb").close()  # the library reports an unreadable file as missing
    return safe_open(path, framework="pt", **options)
