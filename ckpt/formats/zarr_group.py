"""Reads and writes the group of a TensorStore checkpoint, which lists its tensors and their arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt.disk import durable, io_plan, page_cache
from ckpt.disk.io_plan import Direct
from ckpt.errors import CheckpointError
from ckpt.formats import filenames
from ckpt.formats.chunks import chunk_indices
from ckpt.process_group.group import ProcessGroup
from ckpt.state.layout import Layout
from ckpt.state.sharding import Shard

METADATA = "zarr.json"
"""The name of the file with the metadata of a group or an array."""

_RESIDENT_ENOUGH = 0.5
"""The share of pages in the page cache from which a checkpoint is read through it."""

_ATTRIBUTE = "ckpt"


@dataclass(frozen=True, slots=True)
class Listed:
    """A tensor as the group lists it."""

    dtype: str
    owner: str
    """The name whose array holds it: its own, or the one that it is tied to."""


def write_group(directory: Path, layout: Layout) -> None:
    """List the tensors, in the order of the state."""
    names = [[tensor.name, tensor.dtype, tensor.owner] for tensor in layout]
    group = {"zarr_format": 3, "node_type": "group", "attributes": {_ATTRIBUTE: {"tensors": names}}}
    durable.write_atomically(directory / METADATA, json.dumps(group).encode(), sync=False)


def read_group(directory: Path) -> dict[str, Listed]:
    """Return the tensors that the group lists, in the order of the state.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    path = directory / METADATA
    try:
        tensors = json.loads(path.read_text())["attributes"][_ATTRIBUTE]["tensors"]
        listed = {str(name): Listed(str(dtype), str(owner)) for name, dtype, owner in tensors}
        if any(listed[tensor.owner].owner != tensor.owner for tensor in listed.values()):
            raise ValueError("its tied names point nowhere")  # noqa: TRY301  # with the other damages
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is no complete checkpoint: it has no {METADATA}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or not of this package: {type(error).__name__}: {error}") from error
    return listed


def path_of(directory: Path, name: str) -> Path:
    """Derive the directory of a tensor's array from the name, not from a file's text, which could point anywhere."""
    filename = filenames.to_filename(name)
    return directory / (filename.replace(".", "%2E") if filename == METADATA else filename)


def chunk_name(index: tuple[str, ...]) -> str:
    """Return the name of a chunk's file: all lie in the array's directory."""
    return ".".join(("c", *index))


def reads_directly(directory: Path, rows: Mapping[str, Shard | None], group: ProcessGroup, direct: Direct) -> bool:
    """Return whether a rank should read its rows past the page cache: unless they are in it, as the plan has it."""
    if group.size > 1:
        cached = _is_cached(directory, [shard for shard in rows.values() if shard is not None])
    else:
        cached = not rows or page_cache.resident_fraction(directory) > _RESIDENT_ENOUGH
    return not cached and io_plan.plan_for(directory, may_write=False).forced(direct).direct_reads


def _is_cached(directory: Path, shards: Sequence[Shard]) -> bool:
    """Return whether the first chunk of a rank's largest tensor is in the page cache, as a sample of the rest.

    All ranks look at once, and a parallel filesystem shouldn't have to open every file once per rank.
    """
    largest = max(shards, key=lambda shard: shard.layout.size_bytes, default=None)
    if largest is None or not largest.layout.size_bytes:
        return True
    array = path_of(directory, largest.whole.owner)
    try:
        grid = json.loads((array / METADATA).read_text())["chunk_grid"]
        index = next(chunk_indices(largest, grid["configuration"]["chunk_shape"]))
        return page_cache.resident_fraction_of(array / chunk_name(index)) > _RESIDENT_ENOUGH
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, StopIteration):
        return True  # the load raises the error
