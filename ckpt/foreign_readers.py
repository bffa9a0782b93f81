"""Recognises the formats of other programs, and returns readers that load and inspect their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt import registry
from ckpt.errors import CheckpointError
from ckpt.formats import shard_files
from ckpt.state.layout import Layout

_STATE_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".h5", ".hdf5", ".npz", ".msgpack", ".gguf"}
"""The suffixes of files that contain training states: a load warns of such files if it leaves them out."""

_WEIGHTS = ("pytorch_model.bin", "state.pth", "state.h5")
"""The names of files that contain the model's weights or the whole state."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Loads and inspects one path.

    Attributes:
        format: the strategy that reads it, or another name of the format.
        files: the names of the top-level files that it reads, if others may lie beside them.
        load: takes names and options; returns the state, and a description of what was left out.
        look: returns the tensors and the number of plain values, without reading their data.
    """

    format: str
    files: frozenset[str]
    load: Callable[[Collection[str] | None, dict[str, Any]], tuple[Any, str]]
    look: Callable[[], tuple[Layout | None, int]]


def reader_of(path: Path) -> Reader | None:
    """Choose the reader of a directory or a file; None if no format fits.

    Raises:
        CheckpointError: if it is in a known format, and damaged or incomplete.
    """
    if not path.is_dir():
        return file_reader(path)
    readers = (choose(path) for choose in (_safetensors, _dcp, _zarr, _parameters, _lone_file))
    return next((reader for reader in readers if reader is not None), None)


def file_reader(path: Path) -> Reader | None:
    """Choose the reader of a file by its first bytes; None if no format fits."""
    from ckpt.formats.hdf5_arrays import SIGNATURE

    try:
        with path.open("rb", buffering=16) as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error}") from error
    if head.startswith(SIGNATURE):
        return _hdf5(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _torch(path)
    return _safetensors(path) if head[8:9] == b"{" else None


def _strategy(name: str, path: Path, files: Iterable[str] = ()) -> Reader:
    """Create a reader from a strategy; it compares checksums if the files have any."""

    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        verified = {"verify": True} if name == "safetensors_tuned" and options.get("checksum", True) else {}
        return _create(name, verified | options).load(path, names), ""

    return Reader(name, frozenset(files), load, lambda: (_create(name, {}).contents(path), 0))


def _create(name: str, options: dict[str, Any]) -> Any:
    created = registry.create(name, options)
    created.prepare()
    return created


def _safetensors(path: Path) -> Reader | None:
    from ckpt.formats import safetensors_files
    from ckpt.formats.safetensors_files import headers_of

    if path.is_dir() and not (path / safetensors_files.INDEX).exists() and not any(path.glob("*.safetensors")):
        return None
    headers = headers_of(path)
    for file, header in headers.items():
        part = next((info.layout.name for info in header.tensors if info.rows), None)
        if part is not None:
            raise CheckpointError(
                f"{file} holds some rows of tensor {part!r}: load the checkpoint that it is a part of"
            )
    files = [safetensors_files.INDEX, *(file.name for file in headers)]
    if any(header.is_ours and not header.is_aligned for header in headers.values()):
        return _strategy("safetensors_file", path, files)
    return _strategy("safetensors_tuned", path, files)


def _dcp(path: Path) -> Reader | None:
    from ckpt.formats import dcp_metadata

    file = path / dcp_metadata.FILE
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        if opened.read(1) != b"\x80":  # a pickle's first byte
            return None

    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        created = _create("torch_dcp", options)
        if names is not None:
            return created.load(path, names), ""
        state, unread = created.load_state(path)
        why = next(iter(unread.values()), "")
        return state, f"{listed(unread)}: {why}" if unread else ""

    return Reader("torch_dcp", frozenset(), load, lambda: _create("torch_dcp", {}).inspect(path))


def _zarr(path: Path) -> Reader | None:
    from ckpt.formats import zarr_arrays

    node = zarr_arrays.node(path)
    if node is None:
        return None
    attributes = node.get("attributes")
    ours = attributes if isinstance(attributes, dict) and node["node_type"] == "group" else {}
    if isinstance(ours.get("ckpt"), dict) and "tensors" in ours["ckpt"]:
        return _strategy("tensorstore_tuned", path)
    if isinstance(ours.get("names"), list) and zarr_arrays.has_dtypes(path, len(ours["names"])):
        return _strategy("zarr_python", path)

    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        _refuse_options("zarr", options)
        state, left_out = zarr_arrays.load(path, names)
        return state, f"{listed(left_out)}, which hold no numbers" if left_out and names is None else ""

    return Reader("zarr", frozenset(), load, lambda: (zarr_arrays.layout(path)[0], 0))


def _parameters(path: Path) -> Reader | None:
    """Read one zarr array per parameter, as T5X and the strategies after it write them."""
    from ckpt.strategies._zarr_per_parameter import read_metadata

    try:
        known = read_metadata(path)
    except (CheckpointError, OSError):
        return None
    return _strategy("tensorstore_basic", path) if known else None


def _lone_file(path: Path) -> Reader | None:
    """Read the only state file of a directory, or the one that has the model's weights."""
    files = {file.name: file for file in state_files(path) if is_readable(file)}
    shards = _torch_shards(path)
    if shards is not None:
        return shards
    for name in (*_WEIGHTS, *files):
        if name in files and (name in _WEIGHTS or len(files) == 1):
            reader = file_reader(files[name])
            return replace(reader, files=frozenset([name])) if reader else None
    return None


def _torch_shards(path: Path) -> Reader | None:
    """Read several files of `torch.save`, by the index that transformers wrote before it used safetensors."""
    index = path / "pytorch_model.bin.index.json"
    if not index.is_file():
        return None
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [file for file in files if "/" in file or not (path / file).is_file()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error
    if missing:
        raise CheckpointError(f"{path} is no complete checkpoint: it lacks {', '.join(missing[:3])}")

    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        state: dict[str, Any] = {}
        for file in files:
            part = _torch(path / file).load(None, options)[0]
            twice = next((name for name in part if name in state), None)
            if twice is not None:
                raise CheckpointError(f"{path} is damaged: tensor {twice!r} is in {file} and in another file")
            state |= part
        return {name: state[name] for name in shard_files.select(state, names, path)}, ""

    return Reader("torch_save", frozenset(files), load, lambda: (None, 0))


def _torch(path: Path) -> Reader:
    def read(*, mmap: bool) -> Any:
        from ckpt.formats import torch_files

        return torch_files.read(path, str(path), mmap=mmap)

    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        created = _create("torch_save", options)
        state = read(mmap=False) if created.weights_only else created.read_rank(path, None)
        if names is None:
            return state, ""
        from ckpt.tree import nested

        tensors, tied, _ = nested.flatten(state)
        chosen = shard_files.select([*tensors, *tied], names, path)
        return {name: tensors[tied.get(name, name)] for name in chosen}, ""

    def look() -> tuple[Layout | None, int]:
        from ckpt.state.layout import layout_of_state
        from ckpt.tree import nested

        with path.open("rb") as file:
            if file.read(2) != b"PK":  # from before torch 1.6: it can't be inspected without a load
                return None, 0
        state = read(mmap=True)
        try:
            tensors, tied, rest = nested.flatten(state)
        except CheckpointError:  # it has a type that our checkpoints can't store
            return None, 0
        return layout_of_state(tensors | {name: tensors[owner] for name, owner in tied.items()}), nested.plain_values(
            rest
        )

    return Reader("torch_save", frozenset(), load, look)


def _hdf5(path: Path) -> Reader:
    def load(names: Collection[str] | None, options: dict[str, Any]) -> tuple[Any, str]:
        from ckpt.formats import hdf5_arrays
        from ckpt.strategies import hdf5

        _create("hdf5", options)
        if hdf5.is_ours(path):
            return hdf5.load_file(path, names), ""
        state, left_out = hdf5_arrays.load(path, names)
        return state, f"{listed(left_out)}, which hold no numbers, or are links" if left_out and names is None else ""

    def look() -> tuple[Layout | None, int]:
        from ckpt.formats import hdf5_arrays
        from ckpt.strategies import hdf5

        _create("hdf5", {})
        if hdf5.is_ours(path):
            return None, 0
        with hdf5_arrays.arrays_of(path) as arrays:
            return arrays.layout, 0

    return Reader("hdf5", frozenset(), load, look)


def _refuse_options(what: str, options: dict[str, Any]) -> None:
    if options:
        raise CheckpointError(
            f"a {what} checkpoint of another program is read without options: leave out {listed(options)}"
        )


def state_files(path: Path) -> list[Path]:
    """List the files of a directory that contain training states, going by their names."""
    return sorted(file for file in path.iterdir() if file.suffix in _STATE_SUFFIXES and file.is_file())


def is_readable(path: Path) -> bool:
    """Return whether a file is in a known format, going by its first bytes."""
    try:
        return file_reader(path) is not None
    except CheckpointError:
        return False


def listed(names: Iterable[str]) -> str:
    """Join the first eight names, and count the others."""
    every = list(names)
    return ", ".join(every[:8]) + (f" and {len(every) - 8:,} more" if len(every) > 8 else "")
