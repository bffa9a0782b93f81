"""`safetensors.torch.save_file`: one file, or shards and their index as transformers writes them.

Several ranks write a shard each, and the first one the index, without a word between them. Where they hold whole
tensors it is a checkpoint as transformers has it; where they hold rows, each file says which, and the index names a
file that there is not, so that nobody takes a part for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ckpt.disk import durable
from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_files, safetensors_header, shard_files
from ckpt.formats.safetensors_names import METADATA_KEY, Note, is_note, names_bytes, note_of, pack
from ckpt.formats.shard_files import select
from ckpt.process_group.group import ProcessGroup
from ckpt.state import memory
from ckpt.state.dtypes import name_of
from ckpt.state.layout import Layout, layout_of_state, parameters, state_bytes
from ckpt.state.sharding import Fragment, Partition, RankShards, Shard
from ckpt.strategy import Capabilities, Description, Footprint, Strategy, Wanted, sum_over_ranks

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State

_FILE, _INDEX = safetensors_files.FILE, safetensors_files.INDEX
_MIB = 2**20


@dataclass(frozen=True)
class SafetensorsFile(Strategy):
    """Hugging Face's format: a JSON header and raw tensors.

    Attributes:
        shard_mib: the most that a shard holds, unless one tensor is larger; 0 for a single file. With several ranks,
            who each write one, it can't be given.
    """

    shard_mib: Annotated[int, Field(ge=0)] = 0

    name: ClassVar[str] = "safetensors_file"

    requires: ClassVar[tuple[str, ...]] = ("torch", "safetensors.torch")

    as_pairs: ClassVar[tuple[str, ...]] = ("complex128",)
    """The dtypes that the format has no name for."""

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
        """A file for each rank, and the index."""
        shard_files.refuse_shards(self.shard_mib, partition)
        files = sum_over_ranks(partition, self._process_footprint)
        if partition.count == 1:
            return files
        index_bytes = sum(256 + names_bytes(tensor) for tensor in partition.layout) + 4096
        return Footprint(files.file_count + 1, files.size_bytes + index_bytes)

    def write(self, state: State, directory: Path, shards: RankShards, group: ProcessGroup) -> list[Path]:  # noqa: ARG002  # no rank waits for another
        """Write a file, and on the first rank the index, which follows from the partition."""
        if shards.partition.count == 1:
            return self._write_single(state, directory)
        shard_files.refuse_shards(self.shard_mib, shards.partition)
        from safetensors.torch import save_file

        layout = shards.partition.layout
        note = note_of(layout, self.as_pairs)
        told = {note.key_of[each.whole.name]: shard_files.row_range(each) for each in shards.owned}
        metadata = {"format": "pt"}
        if any(told.values()):
            metadata[safetensors_header.ROWS] = json.dumps({key: rows for key, rows in told.items() if rows})
        path = directory / safetensors_files.shard_name(shards.rank, shards.partition.count)
        save_file(pack(state, note), path, metadata)
        if shards.rank:
            return [path]
        files = safetensors_files.files_together(shards.partition)
        weight_map = {note.key_of[each.name]: file for file, tensors in files.items() for each in tensors}
        _write_index(directory, weight_map, parameters(layout), state_bytes(layout), note)
        return [path, directory / _INDEX]

    def read(self, directory: Path, wanted: Wanted | None, stored: Partition | None, group: ProcessGroup) -> State:
        """Read the wanted rows of each file that has some of them."""
        if stored is None or stored.is_single_read(wanted, group.size):
            return self._read_tensors(directory, wanted)
        shards = stored.shards(wanted)
        note = note_of(stored.layout, self.as_pairs)
        parts: dict[str, list[torch.Tensor]] = {}
        with _errors_told(directory):
            for path, fragments in _files_of(directory, shards, stored, note).items():
                for fragment, tensor in zip(fragments, self._read_fragments(path, fragments, note), strict=True):
                    parts.setdefault(fragment.wanted.whole.name, []).append(tensor)
        return shard_files.join(shards, parts)

    def _process_footprint(self, layout: Layout) -> Footprint:
        """A file per shard, and an index if there are several: the bytes of the state, and headers."""
        sizes = {tensor.name: tensor.size_bytes for tensor in layout if tensor.same_as is None}
        shards = len(self._shards(sizes))
        headers = sum(256 + names_bytes(tensor) for tensor in layout) + 4096 * (shards + 1)
        return Footprint(shards + (shards > 1), state_bytes(layout) + headers)

    def _write_single(self, state: State, directory: Path) -> list[Path]:
        """Write one shard after the other, then the index."""
        from safetensors.torch import save_file

        note = note_of(layout_of_state(state), self.as_pairs)
        tensors = pack(state, note)
        shards = self._shards({key: tensor.nbytes for key, tensor in tensors.items()})
        if len(shards) == 1:
            save_file(tensors, directory / _FILE, {"format": "pt", METADATA_KEY: note.to_json()})
            return [directory / _FILE]
        weight_map: dict[str, str] = {}
        for number, keys in enumerate(shards):
            file = safetensors_files.shard_name(number, len(shards))
            save_file({key: tensors[key] for key in keys}, directory / file, {"format": "pt"})
            weight_map |= dict.fromkeys(keys, file)
        parameters = sum(tensor.numel() for tensor in tensors.values())
        _write_index(directory, weight_map, parameters, sum(tensor.nbytes for tensor in tensors.values()), note)
        return [directory / file for file in {*weight_map.values(), _INDEX}]

    def _read_tensors(self, directory: Path, names: Collection[str] | None) -> State:
        """Read each tensor into memory of its own; not through a mapping, whose bytes would be copied once more."""
        with _errors_told(directory):
            file_of, note = _read_index(directory)
            chosen = select(note.key_of, names, directory)
            keys_in: dict[str, list[str]] = {}
            for key in dict.fromkeys(note.key_of[name] for name in chosen):
                keys_in.setdefault(file_of[key], []).append(key)
            tensors: dict[str, torch.Tensor] = {}
            for file, keys in keys_in.items():
                tensors |= self.read_file((directory if directory.is_dir() else directory.parent) / file, keys)
            return note.restore(tensors, chosen)

    def read_file(self, path: Path, keys: list[str]) -> dict[str, torch.Tensor]:
        """The tensors of these keys of one file."""
        with _open(path) as opened:
            return {key: memory.own(opened.get_tensor(key)) for key in keys}

    def _read_fragments(self, path: Path, fragments: Sequence[Fragment], note: Note) -> Iterator[torch.Tensor]:
        """The wanted rows of one file's tensors."""
        from safetensors import safe_open

        shard_files.require(path)
        keys = [note.key_of[fragment.wanted.whole.name] for fragment in fragments]
        with safe_open(path, framework="pt") as opened:  # a mapping: pread would read whole tensors, and then cut them
            rows = json.loads((opened.metadata() or {}).get(safetensors_header.ROWS, "{}"))
            held = {key: opened.get_slice(key) for key in keys}
            cut = {
                key: held[key][fragment.rows].clone()
                for key, fragment in zip(keys, fragments, strict=True)
                if not fragment.is_all
            }
            shapes = {key: held[key].get_shape() for key in keys}
        tensors = cut | self.read_file(path, [key for key in keys if key not in cut])
        for key, fragment in zip(keys, fragments, strict=True):
            tensor = note.value(key, tensors[key])
            shape = shapes[key][:-1] if key in note.pairs else shapes[key]
            shard_files.compare(path, fragment, shape, name_of(tensor), rows.get(key))
            yield tensor

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


def _files_of(directory: Path, shards: Sequence[Shard], saved: Partition, note: Note) -> dict[Path, list[Fragment]]:
    """The files that hold what a rank wants, and what of each."""
    fragments = saved.fragments(shards)
    if saved.count > 1:
        shard_files.require(directory / _INDEX)
        return {directory / safetensors_files.shard_name(rank, saved.count): found for rank, found in fragments.items()}
    file_of, _ = _read_index(directory)
    files: dict[Path, list[Fragment]] = {}
    for fragment in fragments.get(0, []):
        files.setdefault(directory / file_of[note.key_of[fragment.wanted.whole.name]], []).append(fragment)
    return files


@contextmanager
def _errors_told(directory: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises one of many kinds
        raise CheckpointError(f"can't load the safetensors in {directory}: {type(error).__name__}: {error}") from error


def _write_index(directory: Path, weight_map: Mapping[str, str], parameters: int, size_bytes: int, note: Note) -> None:
    metadata = {"total_parameters": parameters, "total_size": size_bytes, METADATA_KEY: note.to_json()}
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    durable.write_atomically(directory / _INDEX, index.encode(), sync=False)


def _open(path: Path) -> Any:
    from safetensors import safe_open

    path.open("rb").close()  # it says "No such file" of one that may not be read
    return safe_open(path, framework="pt", backend="pread")


def _read_index(directory: Path) -> tuple[dict[str, str], Note]:
    """Which file holds each key, and the note; files of others have none."""
    if (directory / _INDEX).exists():
        index = json.loads((directory / _INDEX).read_text())
        file_of, metadata = index["weight_map"], index.get("metadata") or {}
        outside = [file for file in file_of.values() if Path(file).name != file]
        if outside:
            raise CheckpointError(f"{directory / _INDEX} names a file outside its directory: {outside[0]!r}")
        _compare_keys(directory, file_of)
    elif directory.is_file() or (directory / _FILE).exists():
        path = directory if directory.is_file() else directory / _FILE
        with _open(path) as opened:
            file_of, metadata = dict.fromkeys(opened.offset_keys(), path.name), opened.metadata() or {}
    else:
        raise CheckpointError(f"{directory} is no complete checkpoint: it has neither {_FILE} nor {_INDEX}")
    note = metadata.get(METADATA_KEY)
    return file_of, Note.from_json(note) if is_note(note) else Note({key: key for key in file_of}, [])


def _compare_keys(directory: Path, file_of: Mapping[str, str]) -> None:
    """Every key must be in the file that the index names, and in no other."""
    for file in sorted(set(file_of.values())):
        with _open(directory / file) as opened:
            keys = set(opened.offset_keys())
        lacking = [key for key, of in file_of.items() if of == file and key not in keys]
        twice = [key for key in keys if file_of.get(key, file) != file]
        if lacking:
            raise CheckpointError(f"can't load the safetensors in {directory}: {file} lacks tensor {lacking[0]!r}")
        if twice:
            raise CheckpointError(
                f"can't load the safetensors in {directory}: tensor {twice[0]!r} is in "
                f"{file_of[twice[0]]} and in {file}"
            )
