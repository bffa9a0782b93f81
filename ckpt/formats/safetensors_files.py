"""The files of a safetensors checkpoint: their names, their headers, and where the wanted tensors are in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt.errors import CheckpointError
from ckpt.formats import safetensors_header, safetensors_metadata, shard_files
from ckpt.formats.safetensors_header import Header
from ckpt.formats.safetensors_metadata import NOTE_KEY, VERSION_KEY, Metadata, TensorInfo
from ckpt.state.layout import Layout
from ckpt.state.sharding import Fragment, Partition, Shard

FILE = "model.safetensors"

INDEX = "model.safetensors.index.json"
"""The names that transformers gives to a single file, and to the index of several."""

_HEAD_BYTES = 2**16
"""Most headers fit, and are read at once."""


def shard_name(number: int, count: int) -> str:
    """Return the name of one of several files, counted from 0, as transformers writes it."""
    return FILE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def headers_of(path: Path) -> dict[Path, Header]:
    """Return the headers of a file, or of a checkpoint's files in order: those that its index names, or the only one.

    Other safetensors files in a directory with a `model.safetensors` are ignored, as transformers does.
    A tensor that is missing in the index is loaded nevertheless, as transformers does.

    Raises:
        CheckpointError: if a file is missing or damaged, if two have a tensor of the same name, or if the index names
            a tensor that isn't in the file.
    """
    weight_map, metadata = _read_index(path)
    has_index = weight_map or metadata  # a state without tensors has an index of ours without files
    files = sorted({path / file for file in weight_map.values()}) if has_index else [_only_file(path)]
    headers = {file: read_header(file, metadata) for file in files}
    file_of: dict[str, Path] = {}
    for file, header in headers.items():
        for name in (*(tensor.layout.name for tensor in header.tensors), *header.tied):
            other = file_of.setdefault(name, file)
            if other is not file:
                raise CheckpointError(
                    f"{path} is damaged: tensor {name!r} is in both {other.name} and {file.name}; take one of the "
                    "files away if it belongs to another checkpoint"
                )
    keys = {file.name: {tensor.key for tensor in header.tensors} for file, header in headers.items()}
    lacking = [(key, file) for key, file in weight_map.items() if key not in keys[file]]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise CheckpointError(
            f"{path} is no complete checkpoint: {INDEX} names tensor {lacking[0][0]!r} in {lacking[0][1]}, "
            f"which has none of that name{more}"
        )
    return headers


def tensors_by_name(headers: Mapping[Path, Header]) -> dict[str, TensorInfo]:
    """Return the tensors of a checkpoint in the state's order; tied names have the tensor whose memory they share."""
    tensors = {info.layout.name: info for header in headers.values() for info in header.tensors}
    tied = {name: owner for header in headers.values() for name, owner in header.tied.items()}
    names = safetensors_metadata.in_order(tensors.values(), tied)
    return {name: tensors[tied[name][0] if name in tied else name] for name in names}


def contents_of(headers: Mapping[Path, Header]) -> Layout:
    """Return the layout of a checkpoint, in the state's order."""
    layouts = {name: info.layout for name, info in tensors_by_name(headers).items()}
    return tuple(
        layout if layout.name == name else replace(layout, name=name, same_as=layout.name)
        for name, layout in layouts.items()
    )


def stored_fragments(
    directory: Path, shards: Sequence[Shard], stored: Partition
) -> Iterator[tuple[Path, Header, list[tuple[Fragment, TensorInfo]]]]:
    """Find the wanted shards in the files that ranks wrote; yields files with their fragments and tensors.

    Raises:
        CheckpointError: if a file is missing, or belongs to another checkpoint.
    """
    for path, header, fragments in _files_with(directory, shards, stored):
        tensors = {tensor.layout.name: tensor for tensor in header.tensors}
        pairs = []
        for fragment in fragments:
            name = fragment.wanted.whole.name
            if name not in tensors:
                raise CheckpointError(f"{path} belongs to another checkpoint: it has no {name!r}")
            layout = tensors[name].layout
            shard_files.compare(path, fragment, layout.shape, layout.dtype, tensors[name].rows)
            pairs.append((fragment, tensors[name]))
        yield path, header, pairs


def _files_with(
    directory: Path, shards: Sequence[Shard], stored: Partition
) -> Iterator[tuple[Path, Header, list[Fragment]]]:
    fragments = stored.fragments(shards)
    if stored.count > 1:
        paths = {directory / shard_name(rank, stored.count): wanted for rank, wanted in fragments.items()}
        for path in (directory / INDEX, *paths):
            shard_files.require(path)
        for path, wanted in paths.items():
            header = read_header(path)
            yield path, header if header.is_ours else read_header(path, _index_metadata(directory)), wanted
        return
    headers = headers_of(directory)
    file_of = {tensor.layout.name: path for path, header in headers.items() for tensor in header.tensors}
    by_file: dict[Path, list[Fragment]] = {}
    for fragment in fragments.get(0, []):
        name = fragment.wanted.whole.name
        if name not in file_of:
            raise CheckpointError(f"{directory} is no complete checkpoint: no file has {name!r}")
        by_file.setdefault(file_of[name], []).append(fragment)
    for path, wanted in by_file.items():
        yield path, headers[path], wanted


def read_header(path: Path, index: Metadata | None = None) -> Header:
    """Read a file's header.

    Args:
        path: the file.
        index: the metadata in the index of the files that this one belongs to.

    Raises:
        CheckpointError: if it is damaged.
    """
    with path.open("rb", _HEAD_BYTES) as file:  # by default as much as a stripe is read: 4 MiB on CephFS
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        missing = safetensors_header.header_length(head, size_bytes, str(path)) - len(head)
        return safetensors_header.parse(head + file.read(max(0, missing)), size_bytes, str(path), index)


def _index_metadata(directory: Path) -> Metadata | None:
    return _read_index(directory, require_files=False)[1]


def _read_index(path: Path, *, require_files: bool = True) -> tuple[dict[str, str], Metadata | None]:
    """Read an index: the files by key, and the metadata about the tensors; nothing if there is no index.

    Raises:
        CheckpointError: if it is damaged, or names a file that is missing or in another directory.
    """
    index = path / INDEX
    if not index.exists():
        return {}, None
    try:
        content = json.loads(index.read_text())
        file_of = {str(key): str(file) for key, file in content["weight_map"].items()}
        texts = content.get("metadata") or {}
        is_ours = VERSION_KEY in texts
        metadata = (
            safetensors_metadata.from_texts(texts) if is_ours else safetensors_metadata.from_note(texts.get(NOTE_KEY))
        )
        unknown = [key for key in metadata.order if key not in file_of] if metadata else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error
    if unknown:
        raise CheckpointError(f"{index} is damaged: it names no file for tensor {unknown[0]!r}")
    outside = [file for file in file_of.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names a file outside its directory: {outside[0]!r}")
    missing = [file for file in sorted(set(file_of.values())) if require_files and not (path / file).is_file()]
    if missing or (not file_of and not metadata):
        raise CheckpointError(f"{path} is no complete checkpoint: it lacks {', '.join(missing) or 'every file'}")
    return file_of, metadata


def _only_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(file.name for file in path.glob("*.safetensors"))
    shards = any(re.search(r"-of-\d+\.safetensors$", file) for file in files)
    if not shards and FILE in files:
        return path / FILE
    if len(files) != 1 or shards:
        raise CheckpointError(
            f"{path} is no complete checkpoint: it has {len(files)} safetensors files and no {INDEX}; "
            "a file of them can be loaded by its own path"
        )
    return path / files[0]
