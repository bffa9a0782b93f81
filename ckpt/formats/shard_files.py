"""Tensors joined from fragments in several files, and errors about a file that is missing or another checkpoint's.

Files of a checkpoint that many ranks wrote can get lost, or be mixed with those of another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.errors import CheckpointError
from ckpt.state import dtypes, memory
from ckpt.state.sharding import Fragment, Partition, Shard, rows_of

if TYPE_CHECKING:
    import torch

    from ckpt.state.layout import State, TensorLayout


def join(shards: Iterable[Shard], parts: Mapping[str, Sequence[torch.Tensor]]) -> State:
    """Join the parts of every shard, which are in the order of its rows; tied tensors become one."""
    import torch

    joined = {
        name: memory.own(tensors[0] if len(tensors) == 1 else torch.cat(list(tensors)))
        for name, tensors in parts.items()
    }
    return {shard.whole.name: joined[shard.whole.owner] for shard in shards}


def select(known: Iterable[str], names: Collection[str] | None, directory: Path) -> list[str]:
    """Select the known tensors of these names, in the known order; all for None.

    Raises:
        CheckpointError: if a name isn't known.
    """
    listed = list(known)
    if names is None:
        return listed
    names = set(names)
    missing = sorted(names - set(listed))
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(f"{directory} has no tensor {shown}: `python -m ckpt inspect` lists those it has")
    return [name for name in listed if name in names]


def check_targets(stored: Mapping[str, TensorLayout], targets: State, directory: Path) -> None:
    """Check tensors that are to be filled, before any of them is.

    Args:
        stored: what the checkpoint has, by the targets' names.
        targets: the tensors.
        directory: the checkpoint.

    Raises:
        CheckpointError: if the checkpoint lacks one, or has it with another shape or dtype.
    """
    select(stored, targets, directory)
    for name, target in targets.items():
        layout = stored[name]
        if (tuple(target.shape), dtypes.name_of(target)) != (layout.shape, layout.dtype):
            raise CheckpointError(
                f"tensor {name!r} is {layout.dtype} {list(layout.shape)} in {directory}, and can't be read into "
                f"{dtypes.name_of(target)} {list(target.shape)}; no tensor was changed"
            )


def rows_in(target: torch.Tensor, shard: Shard, fragment: Fragment) -> torch.Tensor:
    """Return the rows of a target where a fragment of the shard belongs that the target holds."""
    if not shard.whole.shape:
        return target
    return target[fragment.wanted.start - shard.start : fragment.wanted.stop - shard.start]


def require(path: Path) -> None:
    """Check that a file of a checkpoint exists.

    Raises:
        CheckpointError: if it doesn't.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is no complete checkpoint: it lacks {path.name}")


def refuse_shards(shard_mib: int, partition: Partition) -> None:
    """Check that `shard_mib` isn't given for several ranks, which write one file per rank, of any size.

    Raises:
        CheckpointError: if it is.
    """
    if shard_mib and partition.count > 1:
        raise CheckpointError(
            f"shard_mib = {shard_mib} divides what one rank writes, but here {partition.count} ranks write a file "
            "each: leave shard_mib out, or take one rank"
        )


def row_range(saved: Shard) -> tuple[int, int] | None:
    """Return a shard's first row and its tensor's number of rows, as a file stores them; None for a whole tensor."""
    return None if saved.is_whole else (saved.start, rows_of(saved.whole))


def compare(path: Path, fragment: Fragment, shape: Sequence[int], dtype: str, rows: Sequence[int] | None) -> None:
    """Check that a file holds what a rank of the partition saved.

    Raises:
        CheckpointError: if it holds something else.
    """
    expected = fragment.saved.layout
    stored = (tuple(shape), dtype, tuple(rows) if rows else None)
    if stored != (expected.shape, expected.dtype, row_range(fragment.saved)):
        part = f" from row {rows[0]} of {rows[1]}" if rows else ""
        raise CheckpointError(
            f"{path} belongs to another checkpoint: of tensor {expected.name!r} it holds {dtype} {list(shape)}{part}, "
            f"expected {expected.dtype} {list(expected.shape)}, rows {fragment.saved.start} to {fragment.saved.stop} "
            f"of {rows_of(fragment.saved.whole)}"
        )
